//! Strings of C: one, and lists of them.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};

use crate::sys::errno::Errno;

/// A list longer than this, in bytes, is not asked for: it serves only to name what is similar.
const MAX_LIST_BYTES: usize = 1 << 20;

/// A string for C. Names with a zero byte are refused where they are read.
pub(crate) fn c_string(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno(libc::EINVAL))
}

/// Null or a string of C.
///
/// # Safety
///
/// What is not null must point to a string that ends with a zero byte.
pub(super) unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// Names, each with a zero byte at its end, from a function that fills a buffer of so many bytes: it
/// returns a negative errno, where ERANGE says that the buffer is too small.
pub(super) fn list(mut fill: impl FnMut(&mut [u8]) -> c_int) -> Result<Vec<String>, Errno> {
    let mut buffer = vec![0; 4096];
    loop {
        match fill(&mut buffer) {
            error if error == -libc::ERANGE && buffer.len() < MAX_LIST_BYTES => {
                buffer = vec![0; buffer.len() * 4];
            }
            error if error < 0 => return Err(Errno::of(error)),
            _ => break,
        }
    }
    let names = buffer.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}
