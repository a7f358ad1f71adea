//! The structures and constants of the interface, as `include/nbdbackend.h` declares them.
//!
//! A structure begins with its size, as the program was compiled with it. A later release may append
//! members; a program that does not know them gets what it always got.

use std::ffi::{c_char, c_int, c_void};

/// The device cannot be written to.
pub const NBDB_READ_ONLY: u32 = 1 << 0;
/// Flush makes data durable. Without this the kernel assumes that every answered write is.
pub const NBDB_FLUSH: u32 = 1 << 1;
/// Writes, trims and zeroes with the flag FUA are durable when they are answered.
pub const NBDB_FUA: u32 = 1 << 2;
/// Trim works.
pub const NBDB_TRIM: u32 = 1 << 3;
/// Writing zeroes works.
pub const NBDB_ZERO: u32 = 1 << 4;
/// Reading ahead does something.
pub const NBDB_CACHE: u32 = 1 << 5;
/// The storage is a spinning disk.
pub const NBDB_ROTATIONAL: u32 = 1 << 6;

/// All flags of a geometry.
pub(crate) const GEOMETRY_FLAGS: u32 = (1 << 7) - 1;

/// Serve option: if another process serves the device, the holder kills it.
pub const NBDB_TAKEOVER: u32 = 1 << 0;
/// Serve option: callbacks never block, so the thread that receives requests calls them. Reads then
/// go directly where they are sent from.
pub const NBDB_NEVER_BLOCKS: u32 = 1 << 1;
/// Serve option, with a queue: the program wants NBDB_GRANTED.
pub const NBDB_TELL_GRANTED: u32 = 1 << 2;

/// All options of serving.
pub(crate) const SERVE_FLAGS: u32 = (1 << 3) - 1;

/// Request: fill a buffer; see nbdb_buffer.
pub const NBDB_CMD_READ: u16 = 0;
/// Request: store the data.
pub const NBDB_CMD_WRITE: u16 = 1;
/// Request: make answered writes durable.
pub const NBDB_CMD_FLUSH: u16 = 3;
/// Request: the range's content is not needed any more.
pub const NBDB_CMD_TRIM: u16 = 4;
/// Request: read ahead.
pub const NBDB_CMD_CACHE: u16 = 5;
/// Request: make the range read as zeroes.
pub const NBDB_CMD_ZERO: u16 = 6;

/// Event, to be completed like a request: the device's lanes belong to this process, which serves
/// them once this is completed with 0. Until then nbdb_stored and nbdb_keep work.
pub const NBDB_GRANTED: u16 = 0x100;
/// Event: requests are served. `length` is the number of those that a predecessor left.
pub const NBDB_SERVING: u16 = 0x101;
/// Event: the last one of a device. `error` is 0 after a detach.
pub const NBDB_ENDED: u16 = 0x102;

/// Request flag: durable before it is completed.
pub const NBDB_CMD_FLAG_FUA: u16 = 1 << 0;
/// Request flag of NBDB_CMD_ZERO: keep the range allocated.
pub const NBDB_CMD_FLAG_NO_HOLE: u16 = 1 << 1;

/// Log levels.
pub const NBDB_LOG_ERROR: c_int = 3;
/// As syslog's.
pub const NBDB_LOG_WARNING: c_int = 4;
/// As syslog's.
pub const NBDB_LOG_INFO: c_int = 6;
/// As syslog's.
pub const NBDB_LOG_DEBUG: c_int = 7;

/// Which device to serve.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nbdb_open_options {
    /// sizeof(struct nbdb_open_options).
    pub struct_size: usize,
    /// A device, like "nbd0", or NULL: then the environment tells it.
    pub device: *const c_char,
    /// A capture of `nbd-ctl record` to replay instead, or NULL.
    pub replay: *const c_char,
}

/// Size and abilities of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nbdb_geometry {
    /// sizeof(struct nbdb_geometry).
    pub struct_size: usize,
    /// In bytes: a positive multiple of block_size, below 2^63.
    pub size: u64,
    /// Logical block size in bytes: 512, 1024, 2048 or 4096.
    pub block_size: u32,
    /// NBDB_READ_ONLY and the like.
    pub flags: u32,
}

/// How to serve a device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nbdb_serve_options {
    /// sizeof(struct nbdb_serve_options).
    pub struct_size: usize,
    /// For operators, by convention a word and a colon first, like "mirror:a.img,b.img".
    pub description: *const c_char,
    /// Comes back in each callback and request.
    pub context: *mut c_void,
    /// NBDB_TAKEOVER and the like.
    pub flags: u32,
    /// Most threads of the device that call callbacks at once; 0 for 8. Further requests queue.
    pub max_threads: u32,
}

/// What a synchronous device does, called from threads of the library, several at once. Each returns
/// 0 or an errno; of a negative one the sign is ignored; what is no errno counts as EIO. Ranges lie
/// within the device and are multiples of its block size. None may throw or jump out of itself.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nbdb_callbacks {
    /// sizeof(struct nbdb_callbacks).
    pub struct_size: usize,
    /// Fills a buffer.
    pub read: Option<
        unsafe extern "C-unwind" fn(
            context: *mut c_void,
            buffer: *mut c_void,
            length: usize,
            offset: u64,
        ) -> c_int,
    >,
    /// Stores data; NULL with NBDB_READ_ONLY. `flags` may have NBDB_CMD_FLAG_FUA.
    pub write: Option<
        unsafe extern "C-unwind" fn(
            context: *mut c_void,
            data: *const c_void,
            length: usize,
            offset: u64,
            flags: u32,
        ) -> c_int,
    >,
    /// Makes data durable; needed with NBDB_FLUSH.
    pub flush: Option<unsafe extern "C-unwind" fn(context: *mut c_void) -> c_int>,
    /// Discards a range; needed with NBDB_TRIM.
    pub trim: Option<
        unsafe extern "C-unwind" fn(
            context: *mut c_void,
            offset: u64,
            length: u64,
            flags: u32,
        ) -> c_int,
    >,
    /// Makes a range read as zeroes; needed with NBDB_ZERO. `flags` may have NBDB_CMD_FLAG_NO_HOLE.
    pub zero: Option<
        unsafe extern "C-unwind" fn(
            context: *mut c_void,
            offset: u64,
            length: u64,
            flags: u32,
        ) -> c_int,
    >,
    /// Reads ahead; needed with NBDB_CACHE.
    pub cache: Option<
        unsafe extern "C-unwind" fn(context: *mut c_void, offset: u64, length: u64) -> c_int,
    >,
    /// The lanes belong to this process, which serves them if this returns 0: acquire here what only
    /// one process can have. nbdb_stored and nbdb_keep work. May be NULL.
    pub granted: Option<unsafe extern "C-unwind" fn(context: *mut c_void, device: c_int) -> c_int>,
    /// After the last request, when the device is detached. May be NULL.
    pub close: Option<unsafe extern "C-unwind" fn(context: *mut c_void)>,
}

/// A request of a device with a queue, or an event of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nbdb_request {
    /// For nbdb_complete; 0 if this is an event that needs no completion.
    pub handle: u64,
    /// Of the device's options.
    pub context: *mut c_void,
    /// First byte, of requests with a range.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// A write's data, until the request is completed.
    pub data: *const c_void,
    /// The device.
    pub device: c_int,
    /// Of NBDB_ENDED: 0, or a negative errno.
    pub error: c_int,
    /// NBDB_CMD_READ and the like.
    pub r#type: u16,
    /// NBDB_CMD_FLAG_FUA and the like.
    pub flags: u16,
    /// Always 0.
    pub reserved: u32,
}
