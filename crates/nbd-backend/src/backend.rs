//! The trait that a block device implements.

use std::io;

use nbd_control::backend::ExportInfo;
use nbd_proto::{RequestRules, TransmissionFlags};

use crate::extensions::{AsyncBackend, InlineBackend, MappedBackend};

/// A block device: what every backend implements.
///
/// What a backend can do beyond that, to be faster, are extensions: traits of their own, which it
/// offers by returning itself from [`as_inline`](Self::as_inline), [`as_mapped`](Self::as_mapped) or
/// [`as_async`](Self::as_async). Without any, workers call the methods of this trait.
///
/// The engine calls methods from several threads at once. It has checked offsets and lengths: they
/// lie within [`Geometry::size`] and are multiples of [`Geometry::block_size`]. An error becomes an
/// NBD error by its errno; one without becomes EIO.
///
/// A request is executed again by a successor if this process crashes while executing it. So the
/// second execution must have the same effect, as with reading and writing blocks. A write must
/// have reached the storage's owner (the page cache, another process) when the method returns: an
/// asynchronous write that takes effect after this process died could undo its successor's.
pub trait Backend: Send + Sync + 'static {
    /// Size, block size and capabilities. Must never change while this process serves a device; a
    /// successor may have a larger size, which `nbd-ctl resize` can give to the device.
    fn geometry(&self) -> Geometry;

    /// Fills `buffer` from `offset`. May block.
    ///
    /// # Errors
    ///
    /// If the storage cannot be read; the client gets the error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Stores `data` at `offset`; durably, if `fua` is set. May block.
    ///
    /// # Errors
    ///
    /// If the storage cannot be written. With `fua`, an EIO counts as a failed flush.
    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()>;

    /// Makes all writes that have returned durable. May block.
    ///
    /// # Errors
    ///
    /// If data of earlier writes may be lost. Every later flush then fails without a call of this.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Discards the range's content; reads of it may return anything afterwards. May block.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the storage cannot discard; else as for [`write_at`](Self::write_at).
    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes the range read as zeroes. May block.
    ///
    /// # Errors
    ///
    /// `Unsupported` with [`ZeroOptions::fast_only`] if it would take as long as writing; else as
    /// for [`write_at`](Self::write_at).
    fn write_zeroes(&self, _offset: u64, _length: u64, _how: ZeroOptions) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Reads ahead: the range will be read soon. May block.
    ///
    /// # Errors
    ///
    /// If the storage cannot be read.
    fn cache(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    /// The extents from `offset` on, by allocation and zeroes: at least one, none of them empty, at
    /// most `length` bytes together; with `one` a single extent. May block.
    ///
    /// # Errors
    ///
    /// If the storage cannot be examined.
    fn extents(&self, _offset: u64, length: u64, _one: bool) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { length, hole: false, zero: false }])
    }

    /// How many threads may call methods of this at once; commands beyond that queue. At least 1.
    fn max_threads(&self) -> usize {
        32
    }

    /// Closes upstream connections. Called after the last request when serving ends in order, and
    /// never when the process is killed. The holder waits for it 15 s after an orderly detach,
    /// otherwise 2 s, and then kills the process.
    fn close(&self) {}

    /// Whether some commands can be executed by the receiving thread. The answer never changes, as
    /// with the other extensions.
    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        None
    }

    /// Whether the storage can be mapped in memory.
    fn as_mapped(&self) -> Option<&dyn MappedBackend> {
        None
    }

    /// Whether commands can be submitted and complete later, without a worker.
    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        None
    }
}

/// A range of a device in which all blocks have the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not 0.
    pub length: u64,
    /// Whether it is not allocated.
    pub hole: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
}

/// Options of [`Backend::write_zeroes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Make it durable before returning.
    pub fua: bool,
    /// Keep the range allocated.
    pub no_hole: bool,
    /// Fail with `Unsupported` at once if it would take as long as writing.
    pub fast_only: bool,
}

/// What a backend can do beside reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes are refused before they reach the backend.
    pub read_only: bool,
    /// [`Backend::flush`] makes data durable. Without it the kernel assumes that every write is.
    pub flush: bool,
    /// [`Backend::write_at`] and the others honour `fua`.
    pub fua: bool,
    /// The storage is memory, so written data never becomes more durable. Network clients are
    /// offered flush and FUA all the same, which succeed and do nothing, because some insist on
    /// them. The kernel is not, because they would only cost time.
    pub volatile: bool,
    /// [`Backend::trim`] works.
    pub trim: bool,
    /// [`Backend::write_zeroes`] works.
    pub write_zeroes: bool,
    /// [`Backend::write_zeroes`] knows at once whether it would be slow: see
    /// [`ZeroOptions::fast_only`].
    pub fast_zero: bool,
    /// [`Backend::cache`] does something.
    pub cache: bool,
    /// [`Backend::extents`] can report holes or zeroes.
    pub extents: bool,
    /// Requests need not be aligned to [`Geometry::block_size`]. Network clients make use of that,
    /// the kernel never does.
    pub unaligned: bool,
    /// The storage is a spinning disk.
    pub rotational: bool,
}

/// Shape of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes: a positive multiple of `block_size`.
    pub size: u64,
    /// Logical block size in bytes: a power of two from 512 to 4096.
    pub block_size: u32,
    /// Its capabilities.
    pub capabilities: Capabilities,
}

impl Geometry {
    /// The shape of an attached device. Capabilities that the kernel does not use are false.
    #[must_use]
    pub fn of(attached: &ExportInfo) -> Self {
        let flags = TransmissionFlags::from_bits(attached.flags);
        let has = |flag| flags.contains(flag);
        let capabilities = Capabilities {
            read_only: has(TransmissionFlags::READ_ONLY),
            flush: has(TransmissionFlags::SEND_FLUSH),
            fua: has(TransmissionFlags::SEND_FUA),
            volatile: false,
            trim: has(TransmissionFlags::SEND_TRIM),
            write_zeroes: has(TransmissionFlags::SEND_WRITE_ZEROES),
            fast_zero: false,
            cache: has(TransmissionFlags::SEND_CACHE),
            rotational: has(TransmissionFlags::ROTATIONAL),
            extents: false,
            unaligned: false,
        };
        Self { size: attached.size, block_size: attached.block_size, capabilities }
    }

    /// The transmission flags of NBD for these capabilities.
    #[must_use]
    pub fn transmission_flags(&self) -> TransmissionFlags {
        let can = &self.capabilities;
        // One process serves all lanes, so a flush on one covers the writes on every other.
        let always = TransmissionFlags::HAS_FLAGS | TransmissionFlags::CAN_MULTI_CONN;
        [
            (can.read_only, TransmissionFlags::READ_ONLY),
            (can.flush, TransmissionFlags::SEND_FLUSH),
            (can.fua, TransmissionFlags::SEND_FUA),
            (can.trim, TransmissionFlags::SEND_TRIM),
            (can.write_zeroes, TransmissionFlags::SEND_WRITE_ZEROES),
            (can.write_zeroes && can.fast_zero, TransmissionFlags::SEND_FAST_ZERO),
            (can.cache, TransmissionFlags::SEND_CACHE),
            (can.rotational, TransmissionFlags::ROTATIONAL),
        ]
        .into_iter()
        .filter(|(can, _)| *can)
        .fold(always, |flags, (_, flag)| flags | flag)
    }

    /// The rules by which requests are checked.
    #[must_use]
    pub fn export(&self, max_payload: u32) -> RequestRules {
        RequestRules {
            size: self.size,
            flags: self.transmission_flags(),
            min_block_size: self.block_size,
            max_payload,
            block_status: false,
        }
    }

    /// The shape as the holder gets it.
    #[must_use]
    pub fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.size,
            block_size: self.block_size,
            // The kernel does not use fast zeroes, so two backends that differ only in that are
            // compatible.
            flags: self.transmission_flags().bits() & !TransmissionFlags::SEND_FAST_ZERO.bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_survives_the_way_through_export_info() {
        for bits in 0..1 << 6_u16 {
            let bit = |index: u16| bits >> index & 1 != 0;
            let capabilities = Capabilities {
                read_only: bit(0),
                flush: bit(1),
                fua: bit(2),
                trim: bit(3),
                write_zeroes: bit(4),
                cache: bit(5),
                ..Capabilities::default()
            };
            let geometry = Geometry { size: 1 << 30, block_size: 1024, capabilities };
            assert_eq!(Geometry::of(&geometry.info()), geometry);
            let capabilities = Capabilities { fast_zero: true, ..capabilities };
            let fast = Geometry { capabilities, ..geometry };
            assert_eq!(fast.info(), geometry.info(), "the kernel does not use fast zeroes");
        }
    }
}
