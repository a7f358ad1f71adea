//! The sockets at which others connect, and who may.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nbd_control::system_error::explain;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid};

use crate::core::Event;
use crate::holder::Holder;

/// Binds a listener at `path`, for `owner` only.
///
/// # Errors
///
/// The file system has no room, or the name is too long for a socket.
pub(crate) fn listen(path: &Path, owner: Option<(Uid, Gid)>) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // From its first moment on no other user may connect. Nothing else runs in this process that
    // the mask could surprise.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    // Accepted sockets inherit it. Set on them it would come too late for what is sent at once.
    setsockopt(&listener, sockopt::PassCred, &true)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The user of a connected process.
pub(crate) fn peer_uid(stream: &UnixStream) -> Option<u32> {
    getsockopt(stream, sockopt::PeerCredentials).ok().map(|peer| peer.uid())
}

impl Holder {
    /// Lets backends join, and the group look.
    pub(crate) fn open_join(&mut self) {
        self.log_attach();
        let opened = self.admit_group().map_err(|error| format!("--group: {error}"));
        let socket = self.place.registry.join_socket(self.device.index);
        let opened = opened.and_then(|()| {
            listen(&socket, self.backend_user())
                .map_err(|error| format!("{}: {}", socket.display(), explain(&error)))
        });
        match opened {
            Ok(join) => self.sockets.join = Some(join),
            Err(text) => {
                self.told.failures.setup.text = text;
                self.feed(Event::LanesNotMade);
            }
        }
    }

    /// Lets the members of the group reach the control socket, if there is a group.
    pub(crate) fn admit_group(&self) -> io::Result<()> {
        let Some((_, gid)) = &self.settings.group else {
            return Ok(());
        };
        let (index, registry) = (self.device.index, &self.place.registry);
        let paths = [(registry.control_socket(index), 0o660), (registry.folder(index), 0o710)];
        for (path, mode) in paths {
            std::os::unix::fs::chown(&path, None, Some(gid.as_raw()))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}
