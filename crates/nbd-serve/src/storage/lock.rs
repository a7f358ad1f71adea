//! One writer only: advisory locks, which belong to open file descriptions.

use std::fs::File;
use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::storage::lock_owner::{self, LockOwner};
use crate::storage::system;

/// Those who hold a lock for a moment only, as udev does while it looks at a disk, and the
/// processes of a device that was just detached, are waited for this often and this long.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no lock.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    #[error("{}", in_use_by(.0.as_ref()))]
    Held(Option<LockOwner>),
    #[error("cannot be locked")]
    System(#[source] io::Error),
}

fn in_use_by(owner: Option<&LockOwner>) -> String {
    match owner {
        None => "is in use: another process has locked it, so stop that first".into(),
        Some(owner) => match &owner.device {
            Some(device) => format!(
                "is in use by {owner} for {device}: detach that first with `nbd-ctl detach \
                 {device}`"
            ),
            None => format!("is in use by {owner}: stop that first"),
        },
    }
}

/// Whether a file is locked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locked {
    Yes,
    /// The file system has no locks.
    Impossible,
}

/// Locks a file against writers, or with `shared` for reading only, for as long as the
/// description is open in any process.
pub(crate) fn lock(file: &File, shared: bool) -> Result<Locked, LockError> {
    for attempt in 1.. {
        match system::try_lock(file, shared) {
            Ok(()) => break,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EWOULDBLOCK) if attempt < ATTEMPTS => std::thread::sleep(PAUSE),
                Some(libc::EWOULDBLOCK) => return Err(LockError::Held(lock_owner::find(file))),
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOLCK | libc::EINVAL) => {
                    return Ok(Locked::Impossible);
                }
                _ => return Err(LockError::System(error)),
            },
        }
    }
    Ok(Locked::Yes)
}
