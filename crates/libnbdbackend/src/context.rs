//! The program's pointer, which the library only passes on.
#![allow(unsafe_code)]

use std::ffi::c_void;

/// A pointer that is never followed here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context(pub(crate) *mut c_void);

// SAFETY: an address; the header says that callbacks come from several threads.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}
