//! The functions of the interface but those of queues: each checks what it was passed and calls what
//! is safe.
//!
//! A panic in one of them ends the process, as the language has it for `extern "C"`: a successor then
//! executes again what was not answered.
#![allow(unsafe_code, clippy::missing_safety_doc)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::sync::Arc;

use nbd_backend::{Geometry, request_flusher_privileges};

use crate::abi::{
    NBDB_NEVER_BLOCKS, NBDB_TAKEOVER, NBDB_TELL_GRANTED, nbdb_callbacks, nbdb_geometry,
    nbdb_open_options, nbdb_serve_options,
};
use crate::arguments::{geometry, geometry_flags, null, serve_flags, structure, text};
use crate::callbacks::{self, Callbacks};
use crate::context::Context;
use crate::device::{self, Wanted};
use crate::error::{self, Failure, Outcome, returned};
use crate::log;
use crate::queue;
use crate::queued::Queued;
use crate::serve::{self, By, Served};

/// Threads of a device that does not say how many.
const DEFAULT_THREADS: usize = 8;
/// More threads help no device.
const MAX_THREADS: u32 = 1024;

/// The message of this thread's last call that failed, valid until its next one; "" if none did.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_error() -> *const c_char {
    error::last()
}

/// The version of the library: major, minor and patch as 0xMMmmpp.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_version() -> u32 {
    let number = |text: &str| text.parse().unwrap_or(0);
    let major: u32 = number(env!("CARGO_PKG_VERSION_MAJOR"));
    let minor: u32 = number(env!("CARGO_PKG_VERSION_MINOR"));
    let patch: u32 = number(env!("CARGO_PKG_VERSION_PATCH"));
    major << 16 | minor << 8 | patch
}

/// Sends the library's messages to a function, which any thread may call, several at once. Call it
/// before the first device is opened. Without it or nbdb_log_to_stderr messages are lost. -EALREADY if
/// either was called before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_log_to(
    log: Option<
        unsafe extern "C-unwind" fn(context: *mut c_void, level: c_int, message: *const c_char),
    >,
    context: *mut c_void,
) -> c_int {
    let Some(log) = log else {
        return null("log").tell();
    };
    returned(log::to_program(log, Context(context)).map(|()| 0))
}

/// Writes the library's messages to stderr, in lines that begin with the program's name. The
/// environment variable NBD_LOG says which: "warn", "info", "debug".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_log_to_stderr(program: *const c_char) -> c_int {
    // SAFETY: a string or NULL, says the contract.
    let program = unsafe { text(program, "program") };
    returned(program.and_then(|program| {
        nbd_log::init(program.ok_or_else(|| null("program"))?, None, nbd_log::Output::Stderr);
        Ok(0)
    }))
}

/// Marks the calling thread as one that writeback may depend on (PR_SET_IO_FLUSHER, mlockall), as the
/// library's own threads are. A thread that executes requests of a queue should call it. Without the
/// privilege it does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_io_flusher() -> c_int {
    request_flusher_privileges();
    0
}

/// Connects to the holder of a device. Without options (NULL), or without a device in them, the
/// environment tells which: NBD_HOLDER_FD, set by the holder that started this program; else
/// NBD_REPLAY; else NBD_JOIN=nbd0, and with NBD_TAKEOVER=1 a living backend of it is replaced. Returns
/// the device's number, which is above 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_open(options: *const nbdb_open_options) -> c_int {
    // SAFETY: the contract of structures and strings.
    returned(unsafe { open(options) })
}

unsafe fn open(options: *const nbdb_open_options) -> Outcome<c_int> {
    if options.is_null() {
        return device::open(&Wanted::Environment);
    }
    // SAFETY: the caller's promise.
    let (device, replay) = unsafe {
        let options = structure(options)?;
        (text(options.device, "device")?, text(options.replay, "replay")?)
    };
    match (device, replay) {
        (None, None) => device::open(&Wanted::Environment),
        (Some(name), None) => device::open(&Wanted::Named(name)),
        (None, Some(path)) => device::open(&Wanted::Replay(path)),
        (Some(_), Some(_)) => {
            Err(Failure::new(libc::EINVAL, "a device and a capture cannot both be served"))
        }
    }
}

/// Forgets a device that was not started, or has ended. -EBUSY while it is served: that ends by a
/// detach, or with this process.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_close(device: c_int) -> c_int {
    returned(device::close(device).map(|()| 0))
}

/// Writes the name of a device, like "nbd0", to a buffer. -EAGAIN if it is not known before the grant.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_name(device: c_int, buffer: *mut c_char, size: usize) -> c_int {
    let name = device::get(device).and_then(|device| {
        let unknown = || Failure::new(libc::EAGAIN, "the name is known once the lanes are granted");
        device.name().ok_or_else(unknown)
    });
    // SAFETY: the buffer has `size` bytes, says the contract.
    returned(name.and_then(|name| unsafe { write_text(&name, buffer, size) }))
}

/// Fills in the geometry of the attached device, which a successor must have as well; a larger size is
/// no fault. Returns 1; or 0 if the device does not exist yet, or is not known.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_attached(device: c_int, geometry: *mut nbdb_geometry) -> c_int {
    returned(device::get(device).and_then(|device| {
        // SAFETY: the contract of structures.
        let mut given = unsafe { structure(geometry.cast_const()) }?;
        let Some(attached) = device.attached() else {
            return Ok(0);
        };
        let attached = Geometry::of(&attached);
        given.size = attached.size;
        given.block_size = attached.block_size;
        given.flags = geometry_flags(&attached.capabilities);
        // SAFETY: it was read above, and the program passes it to be written.
        unsafe { geometry.write_unaligned(given) };
        Ok(1)
    }))
}

/// Asks the holder what is stored, before nbdb_start, which may make it kill a living predecessor.
/// Returns the number of stored descriptors. -ENOTSUP if the holder does not show them before the
/// grant. Waits for the holder, 10 s at most.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_examine(device: c_int) -> c_int {
    let examined = device::get(device).and_then(|device| device.examine());
    returned(examined.map(|count| c_int::try_from(count).unwrap_or(c_int::MAX)))
}

/// A duplicate of a stored descriptor, which the program must close: after nbdb_examine, and while
/// granted. -ENOENT if nothing is stored under the name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_stored(device: c_int, name: *const c_char) -> c_int {
    returned(device::get(device).and_then(|device| {
        // SAFETY: a string or NULL, says the contract.
        let name = unsafe { text(name, "name") }?.ok_or_else(|| null("name"))?;
        Ok(device.stored(name)?.into_raw_fd())
    }))
}

/// Writes the name of a stored descriptor to a buffer; names have 32 bytes at most. -ENOENT beyond the
/// last one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_stored_name(
    device: c_int,
    index: c_uint,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    let name = device::get(device).and_then(|device| device.stored_name(index as usize));
    // SAFETY: the buffer has `size` bytes, says the contract.
    returned(name.and_then(|name| unsafe { write_text(&name, buffer, size) }))
}

/// Stores a descriptor with the holder, so that it outlives this process: while granted, and only
/// before the device exists. The program's descriptor stays its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_keep(device: c_int, name: *const c_char, fd: c_int) -> c_int {
    returned(device::get(device).and_then(|device| {
        // SAFETY: a string or NULL, says the contract.
        let name = unsafe { text(name, "name") }?.ok_or_else(|| null("name"))?;
        // SAFETY: a query about a number; it is no error if nothing is open there.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(Failure::new(libc::EBADF, format!("descriptor {fd} is not open")));
        }
        // SAFETY: it is open, and the program keeps it so until this returns.
        device.keep(name, unsafe { BorrowedFd::borrow_raw(fd) })?;
        Ok(0)
    }))
}

/// Starts to serve a device by callbacks, in threads of the library. Returns at once; nbdb_wait waits
/// for the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_start(
    device: c_int,
    geometry: *const nbdb_geometry,
    callbacks: *const nbdb_callbacks,
    options: *const nbdb_serve_options,
) -> c_int {
    // SAFETY: the contract of structures.
    returned(unsafe { start(device, geometry, callbacks, options) })
}

unsafe fn start(
    device: c_int,
    given: *const nbdb_geometry,
    functions: *const nbdb_callbacks,
    options: *const nbdb_serve_options,
) -> Outcome<c_int> {
    let device = device::get(device)?;
    // SAFETY: the caller's promise.
    let (given, functions, options) =
        unsafe { (structure(given)?, structure(functions)?, structure(options)?) };
    // SAFETY: as above.
    let description = unsafe { description(&options) }?;
    let flags = serve_flags(options.flags)?;
    callbacks::check(&functions, &given)?;
    let max_threads = match options.max_threads {
        0 => DEFAULT_THREADS,
        count => count.min(MAX_THREADS) as usize,
    };
    let callbacks = Callbacks {
        functions,
        context: Context(options.context),
        geometry: geometry(&given)?,
        max_threads,
        never_blocks: flags & NBDB_NEVER_BLOCKS != 0,
    };
    let by = By::Callbacks(Arc::new(callbacks));
    serve::start(&device, Served { description, takeover: flags & NBDB_TAKEOVER != 0, by })?;
    Ok(0)
}

/// Starts to serve a device whose requests the program takes from a queue. Returns at once;
/// NBDB_ENDED in the queue tells of the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_start_queued(
    device: c_int,
    geometry: *const nbdb_geometry,
    queue: c_int,
    options: *const nbdb_serve_options,
) -> c_int {
    // SAFETY: the contract of structures.
    returned(unsafe { start_queued(device, geometry, queue, options) })
}

unsafe fn start_queued(
    device: c_int,
    given: *const nbdb_geometry,
    queue: c_int,
    options: *const nbdb_serve_options,
) -> Outcome<c_int> {
    let device = device::get(device)?;
    // SAFETY: the caller's promise.
    let (given, options) = unsafe { (structure(given)?, structure(options)?) };
    // SAFETY: as above.
    let description = unsafe { description(&options) }?;
    let flags = serve_flags(options.flags)?;
    let geometry = geometry(&given)?;
    let queue = queue::acquire(queue)?;
    let queued = Queued {
        device: device.number,
        context: Context(options.context),
        queue: Arc::clone(&queue),
        geometry,
        outstanding: Arc::clone(&device.outstanding),
    };
    let tell_granted = flags & NBDB_TELL_GRANTED != 0;
    let by = By::Queue { queued: Arc::new(queued), tell_granted };
    let started =
        serve::start(&device, Served { description, takeover: flags & NBDB_TAKEOVER != 0, by });
    if started.is_err() {
        queue.release();
    }
    started.map(|()| 0)
}

unsafe fn description(options: &nbdb_serve_options) -> Outcome<String> {
    // SAFETY: the caller's promise.
    let description = unsafe { text(options.description, "description") }?;
    Ok(description.ok_or_else(|| null("description"))?.to_owned())
}

/// Waits until a device is served no more: 0 if it was detached, else why it could not be served.
#[unsafe(no_mangle)]
pub extern "C" fn nbdb_wait(device: c_int) -> c_int {
    returned(device::get(device).and_then(|device| device.wait()).map(|()| 0))
}

/// All of a program that serves one device by callbacks: messages to stderr, nbdb_open, nbdb_start,
/// nbdb_wait, nbdb_close. Returns what main shall return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdb_run(
    geometry: *const nbdb_geometry,
    callbacks: *const nbdb_callbacks,
    options: *const nbdb_serve_options,
) -> c_int {
    // SAFETY: the contract of structures.
    match unsafe { run(geometry, callbacks, options) } {
        Ok(()) => libc::EXIT_SUCCESS,
        Err(failure) => {
            // A failure of serving was told already, by the device's thread.
            tracing::error!("{}", failure.message);
            nbd_log::finish();
            failure.tell();
            libc::EXIT_FAILURE
        }
    }
}

unsafe fn run(
    geometry: *const nbdb_geometry,
    callbacks: *const nbdb_callbacks,
    options: *const nbdb_serve_options,
) -> Outcome<()> {
    let program = std::env::args_os().next().map(std::path::PathBuf::from).unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    nbd_log::init(&program, None, nbd_log::Output::Stderr);
    let device = device::open(&Wanted::Environment)?;
    // SAFETY: the caller's promise.
    unsafe { start(device, geometry, callbacks, options) }?;
    device::get(device)?.wait()?;
    device::close(device)
}

/// Writes a text and its zero byte.
///
/// # Safety
///
/// The buffer must be NULL or have `size` bytes.
unsafe fn write_text(text: &str, buffer: *mut c_char, size: usize) -> Outcome<c_int> {
    if buffer.is_null() {
        return Err(null("buffer"));
    }
    if text.len() >= size {
        let message = format!("{size} bytes are too few for {text}");
        return Err(Failure::new(libc::ERANGE, message));
    }
    // SAFETY: it fits, with its zero byte.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast::<u8>(), text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(0)
}
