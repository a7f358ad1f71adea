//! Requests to a plugin: locked as its thread model asks for, split into pieces that it takes, and
//! emulated as nbdkit does it.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_backend::{Backend, Extent, Geometry, ZeroOptions};

use crate::abi::{FLAG_FAST_ZERO, FLAG_FUA, FLAG_MAY_TRIM, FLAG_REQ_ONE};
use crate::error::PluginError;
use crate::handle::Handle;
use crate::offer::Offer;
use crate::plugin::ThreadModel;

/// What is written where a plugin cannot zero, at most so much at a time.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
/// Longest range of a command without data, in bytes: what 32 bits can tell, in whole blocks.
const MAX_RANGE_BYTES: u64 = 1 << 31;

/// A plugin that serves. All lanes of a device, and all clients of an export, use its one handle.
#[derive(Debug)]
pub struct PluginBackend {
    handle: Handle,
    offer: Offer,
    /// Requests of a plugin that is not parallel take their turn here.
    turn: Option<Mutex<()>>,
}

impl PluginBackend {
    pub(crate) fn new(handle: Handle) -> Result<Self, PluginError> {
        let offer = Offer::ask(&handle)?;
        // There is one handle; so of the four models two are left.
        let is_parallel = handle.plugin().thread_model() == ThreadModel::Parallel;
        let turn = (!is_parallel).then(Mutex::default);
        Ok(Self { handle, offer, turn })
    }

    /// The bytes at the end that are not part of a device, because they are no whole block.
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.offer.size - self.offer.geometry.size
    }

    /// Which requests may be under way at the same time.
    #[must_use]
    pub fn thread_model(&self) -> ThreadModel {
        self.handle.plugin().thread_model()
    }

    /// Reports another shape: the one that a device was attached with, which this serves too.
    #[must_use]
    pub fn with_geometry(mut self, geometry: Geometry) -> Self {
        self.offer.geometry = geometry;
        self
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        // A panic of another request aborts this process.
        self.turn.as_ref().map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes what is one request for the plugin's client, and makes it durable at the end.
    fn write_pieces<'a>(
        &self,
        pieces: impl Iterator<Item = (u64, &'a [u8])>,
        fua: bool,
    ) -> io::Result<()> {
        let flags = self.native_fua(fua);
        for (offset, piece) in pieces {
            self.handle.write(piece, offset, flags)?;
        }
        self.emulate_fua(fua)
    }

    fn native_fua(&self, fua: bool) -> u32 {
        if fua && self.offer.fua_is_native { FLAG_FUA } else { 0 }
    }

    fn emulate_fua(&self, fua: bool) -> io::Result<()> {
        if fua && !self.offer.fua_is_native { self.handle.flush() } else { Ok(()) }
    }

    /// Zeroes by the plugin's own callback. Whether it could: if not, nothing was done.
    fn zero_natively(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<bool> {
        if !self.offer.zero_is_native {
            return Ok(false);
        }
        let may_trim = if how.no_hole { 0 } else { FLAG_MAY_TRIM };
        let fast = if how.fast_only { FLAG_FAST_ZERO } else { 0 };
        let flags = may_trim | fast | self.native_fua(how.fua);
        for (offset, count) in ranges(offset, length) {
            match self.handle.zero(count, offset, flags) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(false),
                done => done?,
            }
        }
        Ok(true)
    }
}

impl Backend for PluginBackend {
    fn geometry(&self) -> Geometry {
        self.offer.geometry
    }

    fn read_at(&self, buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let _turn = self.turn();
        for piece in buffer.chunks_mut(self.offer.max_request as usize) {
            self.handle.read(piece, offset).map_err(as_nbdkit)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let _turn = self.turn();
        let size = self.offer.max_request as usize;
        let offsets = (offset..).step_by(size);
        self.write_pieces(offsets.zip(data.chunks(size)), fua).map_err(as_nbdkit)
    }

    fn flush(&self) -> io::Result<()> {
        let _turn = self.turn();
        self.handle.flush().map_err(as_nbdkit)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let _turn = self.turn();
        let flags = self.native_fua(fua);
        for (offset, count) in ranges(offset, length) {
            self.handle.trim(count, offset, flags).map_err(as_nbdkit)?;
        }
        self.emulate_fua(fua).map_err(as_nbdkit)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        let _turn = self.turn();
        if self.zero_natively(offset, length, how).map_err(as_nbdkit)? {
            return self.emulate_fua(how.fua).map_err(as_nbdkit);
        }
        if how.fast_only {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Both are multiples of the plugin's smallest block.
        let size = u64::from(self.offer.max_request).min(ZEROES.len() as u64);
        let end = offset + length;
        let pieces = (offset..end).step_by(size as usize);
        let pieces = pieces.map(|at| (at, &ZEROES[..size.min(end - at) as usize]));
        self.write_pieces(pieces, how.fua).map_err(as_nbdkit)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        let _turn = self.turn();
        if self.offer.cache_is_native {
            return ranges(offset, length)
                .try_for_each(|(offset, count)| self.handle.cache(count, offset))
                .map_err(as_nbdkit);
        }
        let size = u64::from(self.offer.max_request).min(ZEROES.len() as u64);
        let mut buffer = vec![0; size.min(length) as usize];
        let end = offset + length;
        for at in (offset..end).step_by(size as usize) {
            let piece = &mut buffer[..size.min(end - at) as usize];
            self.handle.read(piece, at).map_err(as_nbdkit)?;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        if !self.offer.has_extents {
            return Ok(vec![Extent { length, hole: false, zero: false }]);
        }
        let _turn = self.turn();
        let flags = if one { FLAG_REQ_ONE } else { 0 };
        let count = length.min(MAX_RANGE_BYTES) as u32;
        let mut extents = self.handle.extents(count, offset, flags).map_err(as_nbdkit)?;
        if one {
            extents.truncate(1);
        }
        Ok(extents)
    }

    fn close(&self) {
        let _turn = self.turn();
        self.handle.close();
        // What it keeps beside the storage, like temporary files, goes now.
        self.handle.plugin().end();
    }
}

/// A range in pieces whose lengths fit what plugins get.
fn ranges(offset: u64, length: u64) -> impl Iterator<Item = (u64, u32)> {
    let end = offset + length;
    (offset..end)
        .step_by(MAX_RANGE_BYTES as usize)
        .map(move |at| (at, MAX_RANGE_BYTES.min(end - at) as u32))
}

/// The error that clients of nbdkit get: what the protocol does not have becomes EINVAL.
fn as_nbdkit(error: io::Error) -> io::Error {
    let Some(errno) = error.raw_os_error() else {
        return error;
    };
    match errno {
        libc::EPERM | libc::EROFS | libc::EIO | libc::ENOMEM | libc::ENOSPC | libc::EDQUOT => error,
        libc::EFBIG | libc::ESHUTDOWN | libc::EOPNOTSUPP | libc::EINVAL => error,
        _ => io::Error::from_raw_os_error(libc::EINVAL),
    }
}
