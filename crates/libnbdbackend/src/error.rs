//! Errors of calls: a negative errno, and a message for the thread that called.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::io;

use nbd_backend::{JoinError, ServeError, chain};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Positive.
    pub(crate) errno: c_int,
    pub(crate) message: String,
}

/// The result of a call.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(errno: c_int, message: impl Into<String>) -> Self {
        Self { errno, message: message.into() }
    }

    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        Self::new(error.raw_os_error().unwrap_or(libc::EIO), format!("{what}: {error}"))
    }

    /// Remembers the message for [`last`], and returns the negative errno.
    pub(crate) fn tell(self) -> c_int {
        let errno = -self.errno;
        remember(&self.message);
        errno
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        let errno = match &error {
            JoinError::NoEndpoint => libc::ENODEV,
            JoinError::BadDescriptor(_) => libc::EBADF,
            JoinError::BadName(_) | JoinError::Recording { .. } => libc::EINVAL,
            JoinError::Connect { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            JoinError::Refused(_) => libc::ECONNREFUSED,
            JoinError::Channel(_) | JoinError::Protocol(_) => libc::EPROTO,
        };
        Self::new(errno, chain(&error))
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let errno = match &error {
            ServeError::Ledger(_) | ServeError::Holder(_) => libc::EPROTO,
            ServeError::Lane { .. } => libc::EIO,
            ServeError::Thread(error) => error.raw_os_error().unwrap_or(libc::EAGAIN),
        };
        Self::new(errno, chain(&error))
    }
}

/// The result of a call as C gets it.
pub(crate) fn returned(result: Outcome<c_int>) -> c_int {
    result.unwrap_or_else(Failure::tell)
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

fn remember(message: &str) {
    // A message with a zero byte ends there.
    let message = message.split('\0').next().unwrap_or_default();
    let message = CString::new(message).unwrap_or_default();
    LAST.with_borrow_mut(|last| *last = message);
}

/// The message of this thread's last failed call; valid until its next one.
pub(crate) fn last() -> *const c_char {
    LAST.with_borrow(|last| last.as_ptr())
}

/// The error that a callback or a completion stands for, which is 0, an errno, or a negative one.
/// What is none of these is told, and is EIO.
pub(crate) fn of_program(code: c_int) -> io::Result<()> {
    /// `MAX_ERRNO` of the kernel.
    const MAX_ERRNO: u32 = 4095;
    match code.unsigned_abs() {
        0 => Ok(()),
        1..=MAX_ERRNO => Err(io::Error::from_raw_os_error(code.abs())),
        _ => {
            tracing::warn!("the program returned {code}, which is no errno: taken for EIO");
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_of_either_sign_count_and_nonsense_is_eio() {
        assert!(of_program(0).is_ok());
        for (code, errno) in [
            (libc::ENOSPC, libc::ENOSPC),
            (-libc::ENOSPC, libc::ENOSPC),
            (4096, libc::EIO),
            (-4096, libc::EIO),
            (c_int::MIN, libc::EIO),
            (c_int::MAX, libc::EIO),
        ] {
            assert_eq!(of_program(code).unwrap_err().raw_os_error(), Some(errno), "{code}");
        }
    }

    #[test]
    fn a_thread_reads_the_message_of_its_own_last_failure() {
        assert_eq!(Failure::new(libc::EBUSY, "it is\0 busy").tell(), -libc::EBUSY);
        std::thread::spawn(|| assert_eq!(LAST.with_borrow(Clone::clone), CString::default()))
            .join()
            .unwrap();
        assert_eq!(LAST.with_borrow(Clone::clone), CString::new("it is").unwrap());
    }
}
