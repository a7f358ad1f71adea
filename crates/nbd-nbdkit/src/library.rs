//! Shared objects: dlopen(3), dlsym(3) and what the loader says.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

use thiserror::Error;

/// Why a shared object cannot be loaded, in the loader's words.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct LoadError(String);

/// Which other objects see its symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Global,
    Own,
}

/// A shared object that is loaded. It stays until the process ends: plugins leave threads and
/// destructors behind that would run into nothing.
#[derive(Debug)]
pub(crate) struct Library(NonNull<c_void>);

// SAFETY: the loader locks what it does with a handle.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loads it, with all symbols resolved: one that is missing shows now and not under load.
    ///
    /// Its constructors run, which may do anything.
    pub(crate) fn open(path: &Path, scope: Scope) -> Result<Self, LoadError> {
        let text = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| LoadError("the path contains a zero byte".into()))?;
        let scope = match scope {
            Scope::Global => libc::RTLD_GLOBAL,
            Scope::Own => libc::RTLD_LOCAL,
        };
        // SAFETY: dlopen with a string that ends with a zero byte. What constructors do is up to the
        // object, which the operator named.
        let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | scope) };
        NonNull::new(handle).map(Self).ok_or_else(last_error)
    }

    /// The address of a symbol, if it has that.
    pub(crate) fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the handle is open, the name ends with a zero byte.
        NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) })
    }
}

fn last_error() -> LoadError {
    // SAFETY: dlerror has no condition. The text is this thread's until its next call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return LoadError("the loader does not say why".into());
    }
    // SAFETY: it is not null, so it is a string.
    LoadError(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
