//! Requests under way: who owns them, and how their results come back.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use crate::sys::api::{self, Api};
use crate::sys::errno::Errno;

/// What librbd works on, until it is done.
///
/// # Safety
///
/// `data` and `buffer` must return the same memory each time until `done` is called, also when `self`
/// is not used in between: librbd reads the one and fills the other.
pub(crate) unsafe trait Operation: Send + 'static {
    /// The bytes to be written; empty for other requests.
    fn data(&self) -> &[u8];

    /// The place for the bytes to be read; empty for other requests.
    fn buffer(&mut self) -> &mut [u8];

    /// It is done. Called once, mostly in a thread of librbd, and must not wait for anything: neither
    /// for the cluster, nor for a client. A read tells how many bytes there were.
    fn done(self: Box<Self>, result: Result<usize, Errno>);
}

/// Starts an operation: `start` gets its data, the place for it, and a completion. If it returns an
/// error, the operation is done with that.
pub(super) fn submit<T: Operation>(
    api: &'static Api,
    operation: Box<T>,
    start: impl FnOnce(*const u8, *mut u8, usize, api::RawCompletion) -> c_int,
) {
    let context = Box::into_raw(Box::new(Context { api, operation }));
    let mut completion = null_mut();
    // SAFETY: the context lives until the callback takes it, or until it is taken back below; a place
    // for a completion.
    let created = unsafe {
        (api.rbd_aio_create_completion)(context.cast(), completed::<T>, &raw mut completion)
    };
    let error = if created < 0 {
        created
    } else {
        // SAFETY: no other thread knows of it yet.
        let operation = unsafe { &mut (*context).operation };
        let data = operation.data();
        let (data, length) = (data.as_ptr(), data.len());
        let buffer = operation.buffer();
        let length = length.max(buffer.len());
        let buffer = buffer.as_mut_ptr();
        let started = start(data, buffer, length, completion);
        if started < 0 {
            // SAFETY: it was not started, so the library does not use it and will not.
            unsafe { (api.rbd_aio_release)(completion) };
        }
        started
    };
    if error < 0 {
        // SAFETY: made by `into_raw` above. There is no callback for what was not started.
        let context = unsafe { Box::from_raw(context) };
        context.operation.done(Err(Errno::of(error)));
    }
}

struct Context<T> {
    api: &'static Api,
    operation: Box<T>,
}

/// Called by librbd, once for each operation that was started.
unsafe extern "C" fn completed<T: Operation>(completion: api::RawCompletion, context: *mut c_void) {
    // SAFETY: the pointer that `submit` made of a context of this very type. `submit` does not use it
    // after the start.
    let context = unsafe { Box::from_raw(context.cast::<Context<T>>()) };
    // SAFETY: the completion is the operation's, and complete.
    let result = unsafe { (context.api.rbd_aio_get_return_value)(completion) };
    // SAFETY: it is not used any more.
    unsafe { (context.api.rbd_aio_release)(completion) };
    let result = usize::try_from(result)
        .map_err(|_| Errno::of(c_int::try_from(result).unwrap_or(-libc::EIO)));
    context.operation.done(result);
}
