//! Starting backend programs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nbd_control::backend::{
    EXAMINE_VARIABLE, EXPORT_VARIABLE, ExportInfo, GROW_VARIABLE, HOLDER_FD,
};
use nbd_control::{Channel, service};
use nix::unistd::{Gid, Group, Uid, User};

use super::connection::guard;
use crate::sandbox::SandboxPlan;
use crate::system::{Process, prepare_program};

/// A program that was started, and the connection on which it will introduce itself.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Process,
    pub(crate) channel: Channel,
}

/// Tells builds of a program apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BuildId {
    device: u64,
    inode: u64,
    /// Time of the last change, in seconds and nanoseconds.
    changed: (i64, i64),
}

impl BuildId {
    /// The build of a program's file as it is now.
    pub(crate) fn of(program: &[String]) -> Option<Self> {
        let meta = std::fs::metadata(program.first()?).ok()?;
        let changed = (meta.mtime(), meta.mtime_nsec());
        Some(Self { device: meta.dev(), inode: meta.ino(), changed })
    }
}

/// The ids of a user by name.
pub(crate) fn look_up(user: &str) -> io::Result<(Uid, Gid)> {
    match User::from_name(user)? {
        Some(user) => Ok((user.uid, user.gid)),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no such user: `getent passwd` lists those of this machine",
        )),
    }
}

/// The id of a group by name.
pub(crate) fn look_up_group(group: &str) -> io::Result<Gid> {
    match Group::from_name(group)? {
        Some(group) => Ok(group.gid),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no such group: `getent group` lists those of this machine",
        )),
    }
}

/// How to start a backend.
pub(crate) struct Start {
    pub(crate) user: Option<(Uid, Gid)>,
    /// What was attached, if the program need not show that it fits.
    pub(crate) attached: Option<ExportInfo>,
    /// It is asked for its present size.
    pub(crate) grows: bool,
    /// Another backend lives: before that one is killed it may look whether it fits.
    pub(crate) examines: bool,
    /// It is called by a name that systemd spares.
    pub(crate) survive_shutdown: bool,
    /// Where its output goes.
    pub(crate) log: File,
    pub(crate) sandbox: Option<SandboxPlan>,
}

/// Starts a backend.
pub(crate) fn start(program: &[String], how: Start) -> io::Result<Started> {
    let (name, arguments) =
        program.split_first().ok_or(io::Error::new(io::ErrorKind::InvalidInput, "no program"))?;
    let (ours, theirs) = UnixStream::pair()?;
    let theirs: OwnedFd = theirs.into();
    let mut channel = guard(ours).map_err(io::Error::other)?;
    channel.identify_senders().map_err(io::Error::other)?;
    let log = how.log;
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if how.survive_shutdown {
        command.arg0(format!("@{name}"));
    }
    set_variables(&mut command, theirs.as_raw_fd(), how.attached, how.grows, how.examines);
    prepare_program(&mut command, theirs.as_raw_fd(), how.user, how.sandbox);
    let mut child = command.spawn()?;
    let process = match Process::open(child.id().cast_signed()) {
        Ok(process) => process,
        Err(error) => {
            // No descriptor is left to watch it by, so it must not stay. It has not yet been told
            // anything, and dies at once.
            child.kill().and_then(|()| child.wait()).map_err(io::Error::other)?;
            return Err(error);
        }
    };
    Ok(Started { process, channel })
}

/// Tells a backend what it is started for, and nothing that is for the holder.
fn set_variables(
    command: &mut Command,
    holder: RawFd,
    attached: Option<ExportInfo>,
    grows: bool,
    examines: bool,
) {
    service::withhold(command);
    command
        .env(HOLDER_FD, holder.to_string())
        .env_remove(EXPORT_VARIABLE)
        .env_remove(GROW_VARIABLE)
        .env_remove(EXAMINE_VARIABLE);
    if let Some(export) = attached {
        command.env(EXPORT_VARIABLE, export.to_variable());
    }
    if grows {
        command.env(GROW_VARIABLE, "1");
    }
    if examines {
        command.env(EXAMINE_VARIABLE, "1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit of systemd may pass sockets to the holder, with its pid. A backend that does not look whose
    /// they are would take the first descriptor that it has for one.
    #[test]
    fn a_backend_hears_nothing_of_the_holders_service_manager() {
        let mut command = Command::new("/usr/bin/env");
        let kept = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", GROW_VARIABLE];
        command.envs(kept.map(|name| (name, "1")));
        set_variables(&mut command, 7, None, false, true);
        let told = String::from_utf8(command.output().unwrap().stdout).unwrap();
        for name in kept {
            assert!(!told.contains(&format!("{name}=")), "{told}");
        }
        assert!(told.contains(&format!("{HOLDER_FD}=7\n")), "{told}");
        assert!(told.contains(&format!("{EXAMINE_VARIABLE}=1\n")), "{told}");
    }
}
