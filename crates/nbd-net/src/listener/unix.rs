//! Unix sockets, and the files that they leave behind.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, UnixAddr, connect, listen};
use nix::sys::stat::{Mode, fchmod};

use super::ListenError;
use super::socket_file::{SocketFile, identity};
use super::source::{Listener, Source, failed, stream_socket};
use crate::address::{Address, Listen};

pub(super) fn bind(path: &Path, mode: u32) -> Result<Listener, ListenError> {
    let listen = Listen::Unix(path.to_owned());
    let failed = |error: io::Error| ListenError::Failed { listen: listen.clone(), source: error };
    let place = UnixAddr::new(path).map_err(|errno| match errno {
        Errno::ENAMETOOLONG => {
            ListenError::LongPath { path: path.to_owned(), length: path.as_os_str().len() }
        }
        errno => failed(errno.into()),
    })?;
    // The file is still to be found after a change of the working directory.
    let path = std::path::absolute(path).map_err(failed)?;
    let _lock = lock_directory_of(&path);
    let fd = bind_and_listen(&listen, &path, &place, mode)?;
    let file = SocketFile { identity: identity(&path).map_err(failed)?, path: path.clone() };
    let address = Some(Address::Unix(path));
    Ok(Listener { address, _file: Some(file), source: Source::Many(fd) })
}

/// Keeps others of us from replacing a socket while we do: two of them could find the same one
/// dead, and the second would remove what the first has just made. Where locking is impossible we
/// go without.
fn lock_directory_of(path: &Path) -> Option<Flock<File>> {
    let mut directory = File::open(path.parent()?).ok()?;
    for _ in 0..100 {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((file, Errno::EAGAIN)) => directory = file,
            Err(_) => return None,
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

fn bind_and_listen(
    to: &Listen,
    path: &Path,
    place: &UnixAddr,
    mode: u32,
) -> Result<OwnedFd, ListenError> {
    let fd = stream_socket(AddressFamily::Unix).map_err(|errno| failed(to, errno))?;
    // The file gets the mode of the socket, so that there is no moment at which more is allowed.
    let mode = mode & 0o777;
    fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(|errno| failed(to, errno))?;
    match nix::sys::socket::bind(fd.as_raw_fd(), place) {
        Err(Errno::EADDRINUSE) => {
            remove_dead(to, path, place)?;
            nix::sys::socket::bind(fd.as_raw_fd(), place).map_err(|errno| failed(to, errno))?;
        }
        other => other.map_err(|errno| failed(to, errno))?,
    }
    // Of that the umask was taken away.
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|source| ListenError::Failed { listen: to.clone(), source })?;
    listen(&fd, Backlog::MAXCONN).map_err(|errno| failed(to, errno))?;
    Ok(fd)
}

/// Removes the socket of a server that is gone.
fn remove_dead(to: &Listen, path: &Path, place: &UnixAddr) -> Result<(), ListenError> {
    let io_failed = |source| ListenError::Failed { listen: to.clone(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::InTheWay(path.to_owned()));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_failed(error)),
        _ => {}
    }
    let probe = stream_socket(AddressFamily::Unix).map_err(|errno| failed(to, errno))?;
    match connect(probe.as_raw_fd(), place) {
        Err(Errno::ECONNREFUSED) => match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ListenError::Stale { path: path.to_owned(), source })
            }
            _ => Ok(()),
        },
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EACCES) => Err(ListenError::Foreign(path.to_owned())),
        // A full backlog is a sign of life as well.
        _ => Err(ListenError::InUse(to.clone())),
    }
}
