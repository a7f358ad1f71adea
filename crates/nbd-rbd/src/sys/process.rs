//! The end of this process.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

static IS_LEFT_OPEN: AtomicBool = AtomicBool::new(false);

/// An image could not be closed, and the library still works on it.
pub(crate) fn leave_open() {
    IS_LEFT_OPEN.store(true, Ordering::Release);
}

/// Ends this process with this exit status if an image could not be closed. To be called where it ends
/// anyway: the library's destructors would run beside its threads.
pub fn end_if_left_open(status: u8) {
    if IS_LEFT_OPEN.load(Ordering::Acquire) {
        end(status);
    }
}

/// Ends this process at once, without destructors.
pub(crate) fn end(status: u8) -> ! {
    // SAFETY: _exit(2) has no condition, and nothing of this process runs after it.
    unsafe { libc::_exit(status.into()) }
}
