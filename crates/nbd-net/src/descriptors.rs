//! How many descriptors this process may have.

use std::io;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft limit that the process was started with, once it was raised.
static ORIGINAL: OnceLock<u64> = OnceLock::new();

/// Raises the limit to `wanted`, or as far as the system allows, and returns what it is then. Meant
/// for servers: 1,024 is the usual limit, kept low for the sake of programs that use select(2).
///
/// # Errors
/// The system does not tell the limit, or does not let it be raised within its own bounds.
pub fn raise_limit(wanted: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(soft);
    }
    ORIGINAL.get_or_init(|| soft);
    if hard < wanted {
        match setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted) {
            Ok(()) => return Ok(wanted),
            // Only a privileged process may have more, and no process more than the system's own limit.
            Err(Errno::EPERM | Errno::EINVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let most = wanted.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, most, hard)?;
    Ok(most)
}

/// The limit that programs are to have that this process starts, if it is another one than its own.
pub fn original_limit() -> Option<u64> {
    ORIGINAL.get().copied()
}
