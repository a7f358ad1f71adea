//! A synchronous device: the engine's threads call the program's functions.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;

use nbd_backend::{Backend, Geometry, InlineBackend, NeverBlocks, ZeroOptions};

use crate::abi::{
    NBDB_CACHE, NBDB_CMD_FLAG_FUA, NBDB_CMD_FLAG_NO_HOLE, NBDB_FLUSH, NBDB_READ_ONLY, NBDB_TRIM,
    NBDB_ZERO, nbdb_callbacks, nbdb_geometry,
};
use crate::context::Context;
use crate::error::{Failure, Outcome, of_program};

/// The program's functions and what they are called with.
pub(crate) struct Callbacks {
    pub(crate) functions: nbdb_callbacks,
    pub(crate) context: Context,
    pub(crate) geometry: Geometry,
    pub(crate) max_threads: usize,
    pub(crate) never_blocks: bool,
}

/// Whether there is a function for all that the geometry offers.
pub(crate) fn check(functions: &nbdb_callbacks, geometry: &nbdb_geometry) -> Outcome<()> {
    let has = |flag| geometry.flags & flag != 0;
    let needed = [
        (true, functions.read.is_some(), "read"),
        (!has(NBDB_READ_ONLY), functions.write.is_some(), "write"),
        (has(NBDB_FLUSH), functions.flush.is_some(), "flush"),
        (has(NBDB_TRIM), functions.trim.is_some(), "trim"),
        (has(NBDB_ZERO), functions.zero.is_some(), "zero"),
        (has(NBDB_CACHE), functions.cache.is_some(), "cache"),
    ];
    match needed.into_iter().find(|(needed, given, _)| *needed && !given) {
        None => Ok(()),
        Some((_, _, name)) => Err(Failure::new(
            libc::EINVAL,
            format!("the geometry needs the callback {name}, which is NULL"),
        )),
    }
}

fn flags(fua: bool, no_hole: bool) -> u32 {
    let flags = [(fua, NBDB_CMD_FLAG_FUA), (no_hole, NBDB_CMD_FLAG_NO_HOLE)];
    flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| u32::from(flag)).sum()
}

fn unsupported() -> io::Result<c_int> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Callbacks {
    fn context(&self) -> *mut c_void {
        self.context.0
    }

    /// Asks the program whether it serves the device, which was granted.
    pub(crate) fn granted(&self, device: c_int) -> c_int {
        // SAFETY: the program declared the function so; its contract is in the header.
        self.functions.granted.map_or(0, |granted| unsafe { granted(self.context(), device) })
    }
}

// The functions are called as the header declares them. Exceptions and longjmp out of them end the
// process, because Rust does not let foreign unwinding out of a thread.
impl Backend for Callbacks {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(read) = self.functions.read else { return unsupported().and_then(of_program) };
        // SAFETY: the buffer is valid for its length until the function returns.
        of_program(unsafe {
            read(self.context(), buffer.as_mut_ptr().cast(), buffer.len(), offset)
        })
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let Some(write) = self.functions.write else { return unsupported().and_then(of_program) };
        let (start, length) = (data.as_ptr().cast(), data.len());
        // SAFETY: the data is valid for its length until the function returns.
        of_program(unsafe { write(self.context(), start, length, offset, flags(fua, false)) })
    }

    fn flush(&self) -> io::Result<()> {
        let Some(flush) = self.functions.flush else { return Ok(()) };
        // SAFETY: it takes the program's own context.
        of_program(unsafe { flush(self.context()) })
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let Some(trim) = self.functions.trim else { return unsupported().and_then(of_program) };
        // SAFETY: as for flush.
        of_program(unsafe { trim(self.context(), offset, length, flags(fua, false)) })
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        let Some(zero) = self.functions.zero else { return unsupported().and_then(of_program) };
        // SAFETY: as for flush.
        of_program(unsafe { zero(self.context(), offset, length, flags(how.fua, how.no_hole)) })
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        let Some(cache) = self.functions.cache else { return Ok(()) };
        // SAFETY: as for flush.
        of_program(unsafe { cache(self.context(), offset, length) })
    }

    fn max_threads(&self) -> usize {
        self.max_threads
    }

    fn close(&self) {
        if let Some(close) = self.functions.close {
            // SAFETY: as for flush.
            unsafe { close(self.context()) };
        }
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        self.never_blocks.then_some(&NeverBlocks(u64::MAX) as &dyn InlineBackend)
    }
}
