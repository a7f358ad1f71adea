//! Requests to a plugin: locked as its thread model asks for, split into pieces that it takes, and
//! emulated as nbdkit does it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_backend::{Backend, Command, Extent, Geometry, ZeroOptions};

use crate::abi::{FLAG_FAST_ZERO, FLAG_FUA, FLAG_MAY_TRIM, FLAG_REQ_ONE};
use crate::error::PluginError;
use crate::handle::Handle;
use crate::offer::Offer;
use crate::pace::Pace;
use crate::plugin::{Plugin, ThreadModel};

/// What is written where a plugin cannot zero, at most so much at a time.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
/// Longest range of a command without data, in bytes: what 32 bits can tell, in whole blocks.
const MAX_RANGE_BYTES: u64 = 1 << 31;
/// Longest range of a command that the receiving thread executes, in bytes.
const MAX_QUICK_LEN: u64 = 1 << 20;
/// Threads that call a parallel plugin: twice nbdkit's own number.
const MAX_THREADS: usize = 32;

/// A plugin that serves. All lanes of a device, and all clients of an export, use its one handle.
#[derive(Debug)]
pub struct PluginBackend {
    handle: Handle,
    offer: Offer,
    /// Requests of a plugin that is not parallel take their turn here.
    turn: Option<Mutex<()>>,
    /// How long calls take: reads, writes, and what may take longer than a write.
    read_pace: Pace,
    write_pace: Pace,
    other_pace: Pace,
}

impl PluginBackend {
    /// Opens what a plugin serves to clients that ask for this name of an export; a device has none,
    /// which is the plugin's default. It can be opened again when the backend has been dropped.
    ///
    /// # Errors
    ///
    /// The plugin fails, in its own words; or what it serves cannot be a device.
    pub fn open(plugin: &Arc<Plugin>, export_name: &str) -> Result<Self, PluginError> {
        plugin.make_ready()?;
        let handle = Handle::open(Arc::clone(plugin), export_name)?;
        let offer = Offer::ask(&handle)?;
        // There is one handle; so of the four models two are left.
        let is_parallel = plugin.thread_model() == ThreadModel::Parallel;
        let turn = (!is_parallel).then(Mutex::default);
        let [read_pace, write_pace, other_pace] = [(); 3].map(|()| Pace::new(is_parallel));
        Ok(Self { handle, offer, turn, read_pace, write_pace, other_pace })
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

    /// Executes a request in its turn, and notes how long it took.
    fn request<T>(&self, pace: &Pace, execute: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        pace.call(|| {
            let _turn = self.turn();
            execute().map_err(as_nbdkit)
        })
    }

    /// A range in pieces that the plugin takes and [`ZEROES`] has: where, and how long. Both limits are
    /// multiples of the plugin's smallest block.
    fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, usize)> {
        let size = u64::from(self.offer.max_request).min(ZEROES.len() as u64);
        let end = offset + length;
        (offset..end).step_by(size as usize).map(move |at| (at, size.min(end - at) as usize))
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

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let size = self.offer.max_request as usize;
        self.request(&self.read_pace, || {
            let mut pieces = (offset..).step_by(size).zip(buffer.chunks_mut(size));
            pieces.try_for_each(|(offset, piece)| self.handle.read(piece, offset))
        })
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let size = self.offer.max_request as usize;
        let pace = if fua { &self.other_pace } else { &self.write_pace };
        let pieces = (offset..).step_by(size).zip(data.chunks(size));
        self.request(pace, || self.write_pieces(pieces, fua))
    }

    fn flush(&self) -> io::Result<()> {
        self.request(&self.other_pace, || self.handle.flush())
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let flags = self.native_fua(fua);
        self.request(&self.other_pace, || {
            for (offset, count) in ranges(offset, length) {
                self.handle.trim(count, offset, flags)?;
            }
            self.emulate_fua(fua)
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        self.request(&self.other_pace, || {
            if self.zero_natively(offset, length, how)? {
                return self.emulate_fua(how.fua);
            }
            if how.fast_only {
                return Err(io::ErrorKind::Unsupported.into());
            }
            let pieces = self.pieces(offset, length).map(|(at, size)| (at, &ZEROES[..size]));
            self.write_pieces(pieces, how.fua)
        })
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.request(&self.other_pace, || {
            if self.offer.cache_is_native {
                return ranges(offset, length)
                    .try_for_each(|(offset, count)| self.handle.cache(count, offset));
            }
            let mut buffer = Vec::new();
            for (at, size) in self.pieces(offset, length) {
                buffer.resize(size, 0);
                self.handle.read(&mut buffer, at)?;
            }
            Ok(())
        })
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

    /// Threads beyond that would only wait for their turn.
    fn max_threads(&self) -> usize {
        if self.turn.is_some() { 1 } else { MAX_THREADS }
    }

    /// No plugin promises that. This tells whether its calls have been quick of late.
    fn is_quick(&self, command: &Command) -> bool {
        let pace = match command {
            Command::Read { .. } => &self.read_pace,
            Command::Write { fua: false, .. } => &self.write_pace,
            Command::BlockStatus { .. } => return false,
            _ => &self.other_pace,
        };
        command.range().1 <= MAX_QUICK_LEN && pace.is_quick()
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
