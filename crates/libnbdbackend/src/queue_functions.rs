//! The functions of queues, and of the requests that come from them.
#![allow(unsafe_code, clippy::missing_safety_doc)]

use std::ffi::{c_int, c_uint, c_void};
use std::mem::size_of;

use nbd_backend::Command;

use crate::abi::{
    NBDB_CMD_CACHE, NBDB_CMD_FLAG_FUA, NBDB_CMD_FLAG_NO_HOLE, NBDB_CMD_FLUSH, NBDB_CMD_READ,
    NBDB_CMD_TRIM, NBDB_CMD_WRITE, NBDB_CMD_ZERO, NBDB_ENDED, NBDB_GRANTED, NBDB_SERVING,
    nbdb_request,
};
use crate::arguments::null;
use crate::buffer::Buffer;
use crate::error::{Failure, Outcome, returned};
use crate::queue::{self, Entry, Waiting};
use crate::queued::{self, Source};
use crate::requests::{self, Work};

/// Makes a queue for the requests of any number of devices. Returns its number, which is above 0.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_queue_open() -> c_int {
    returned(queue::open())
}

/// The descriptor to poll: readable while nbdb_take would return something. It stays the library's.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_queue_fd(queue: c_int) -> c_int {
    returned(queue::get(queue).map(|queue| queue.descriptor()))
}

/// Ends a queue. -EBUSY until each device that was started with it has ended.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_queue_close(queue: c_int) -> c_int {
    returned(queue::close(queue).map(|()| 0))
}

/// Takes up to `count` requests and events from a queue, without waiting; how many. `request_size` is
/// sizeof(struct nbdb_request). Each with a handle must be completed, at any time, in any order, by any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_take(
    queue: c_int,
    requests: *mut nbdb_request,
    request_size: usize,
    count: c_uint,
) -> c_int {
    // SAFETY: the contract below.
    returned(unsafe { take(queue, requests, request_size, count) })
}

unsafe fn take(
    queue: c_int,
    requests: *mut nbdb_request,
    request_size: usize,
    count: c_uint,
) -> Outcome<c_int> {
    let queue = queue::get(queue)?;
    if requests.is_null() {
        return Err(null("requests"));
    }
    if request_size != size_of::<nbdb_request>() {
        let message = format!("request_size is {request_size}: use sizeof(struct nbdb_request)");
        return Err(Failure::new(libc::EINVAL, message));
    }
    let waiting = queue.take(count.min(c_int::MAX.unsigned_abs()) as usize);
    let mut taken = 0;
    for request in waiting.into_iter().filter_map(described) {
        // SAFETY: the array has `count` elements, says the contract, and fewer are written.
        unsafe { requests.add(taken as usize).write_unaligned(request) };
        taken += 1;
    }
    Ok(taken)
}

/// What the program gets of an entry; nothing if the request was completed already, by its number.
fn described(waiting: Waiting) -> Option<nbdb_request> {
    let Waiting { device, context, entry } = waiting;
    let event = nbdb_request {
        handle: 0,
        context: context.0,
        offset: 0,
        length: 0,
        data: std::ptr::null(),
        device,
        error: 0,
        r#type: NBDB_SERVING,
        flags: 0,
        reserved: 0,
    };
    match entry {
        Entry::Serving(recovered) => Some(nbdb_request { length: recovered.into(), ..event }),
        Entry::Ended(error) => Some(nbdb_request { r#type: NBDB_ENDED, error, ..event }),
        Entry::Request(handle) => requests::with(handle, |request| match &request.work {
            Work::Grant(_) => nbdb_request { handle, r#type: NBDB_GRANTED, ..event },
            Work::Task(task) => {
                task.begin();
                let command = task.command();
                let (offset, length) = command.range();
                let (kind, flags) = kind(command);
                let data = match command {
                    Command::Write { .. } => task.payload().as_ptr().cast(),
                    _ => std::ptr::null(),
                };
                nbdb_request { handle, offset, length, data, r#type: kind, flags, ..event }
            }
        }),
    }
}

fn kind(command: &Command) -> (u16, u16) {
    let fua = |fua: bool| if fua { NBDB_CMD_FLAG_FUA } else { 0 };
    match *command {
        Command::Write { fua: durable, .. } => (NBDB_CMD_WRITE, fua(durable)),
        Command::Flush => (NBDB_CMD_FLUSH, 0),
        Command::Trim { fua: durable, .. } => (NBDB_CMD_TRIM, fua(durable)),
        Command::Cache { .. } => (NBDB_CMD_CACHE, 0),
        Command::WriteZeroes { fua: durable, no_hole, .. } => {
            (NBDB_CMD_ZERO, fua(durable) | if no_hole { NBDB_CMD_FLAG_NO_HOLE } else { 0 })
        }
        // The lane never hands on the other two.
        Command::Read { .. } | Command::BlockStatus { .. } | Command::Disconnect => {
            (NBDB_CMD_READ, 0)
        }
    }
}

/// Where the data of a read goes: zeroed memory of its length, aligned to 4096 bytes, the same at each
/// call, until the request is completed. NULL for all other requests, and if there is no memory.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_buffer(request: u64) -> *mut c_void {
    let found = requests::with(request, |request| {
        let Work::Task(task) = &request.work else { return None };
        let Command::Read { length, .. } = *task.command() else { return None };
        if request.buffer.is_none() {
            request.buffer = Buffer::new(length as usize);
        }
        Some(request.buffer.as_ref().map(Buffer::pointer))
    });
    let failure = match found {
        Some(Some(Some(pointer))) => return pointer.cast(),
        Some(Some(None)) => Failure::new(libc::ENOMEM, "there is no memory for the data of a read"),
        Some(None) => Failure::new(libc::EINVAL, "only a read has a buffer"),
        None => queued::unknown(request),
    };
    failure.tell();
    std::ptr::null_mut()
}

/// Completes a request: with 0, or an errno of either sign. A read's data must be in nbdb_buffer.
/// -ENOENT if it is completed already, or was none.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_complete(request: u64, error: c_int) -> c_int {
    returned(queued::complete(request, error, &Source::Buffer).map(|()| 0))
}

/// Completes a read with data from the program's own memory, which is copied before this returns. Of
/// any other length than the request's it is refused, and the request stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_complete_read(
    request: u64,
    data: *const c_void,
    length: usize,
) -> c_int {
    if data.is_null() {
        return null("data").tell();
    }
    if isize::try_from(length).is_err() {
        return Failure::new(libc::EINVAL, "no memory is that long").tell();
    }
    // SAFETY: the program passes as many bytes, which do not change until this returns.
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) };
    returned(queued::complete(request, 0, &Source::Program(data)).map(|()| 0))
}
