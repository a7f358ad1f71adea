//! The shared object: dlopen(3) and dlsym(3).
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};

use thiserror::Error;

/// The object's name; its number is that of the C interface, which has only grown since 2010.
pub(crate) const LIBRARY: &CStr = c"librbd.so.1";

/// Why librbd cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LibraryError {
    /// It is not installed, or cannot be loaded.
    #[error("librbd.so.1 cannot be loaded ({0}): install Ceph's client library (Debian: librbd1)")]
    Load(String),
    /// It is too old.
    #[error(
        "librbd.so.1 has no function `{0}`: it is older than Ceph 16 (Pacific), and that or a newer \
         version is needed"
    )]
    Old(&'static str),
}

/// A shared object that is loaded. It stays until the process ends.
#[derive(Clone, Copy)]
pub(super) struct Library(*mut c_void);

impl Library {
    pub(super) fn open() -> Result<Self, LibraryError> {
        // SAFETY: a string that ends with a zero byte. Its constructors are those of an installed library.
        let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() { Err(LibraryError::Load(last_error())) } else { Ok(Self(handle)) }
    }

    /// The address of a symbol of it or of librados, which it brings along. Not null.
    pub(super) fn symbol(self, name: &'static str) -> Result<*mut c_void, LibraryError> {
        let without_end = name.trim_end_matches('\0');
        let name = CStr::from_bytes_with_nul(name.as_bytes());
        let name = name.map_err(|_| LibraryError::Old(without_end))?;
        // SAFETY: the handle is open, the name ends with a zero byte.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if address.is_null() { Err(LibraryError::Old(without_end)) } else { Ok(address) }
    }
}

fn last_error() -> String {
    // SAFETY: dlerror has no condition. The text is this thread's until its next call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader does not say why".into();
    }
    // SAFETY: it is not null, so it is a string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
