//! How functions of librbd and librados fail.

use std::ffi::c_int;
use std::fmt;
use std::io;

use thiserror::Error;

/// An error of librbd or librados: a number of errno(3), positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub struct Errno(pub(crate) c_int);

impl Errno {
    /// What a function means that returned a negative number.
    pub(crate) fn of(result: c_int) -> Self {
        Self(result.checked_neg().unwrap_or(libc::EIO))
    }

    pub(crate) fn check(result: c_int) -> Result<(), Self> {
        if result < 0 { Err(Self::of(result)) } else { Ok(()) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}
