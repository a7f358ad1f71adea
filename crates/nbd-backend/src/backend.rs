//! The trait that a block device implements, and what it speaks of.

pub(crate) mod durability;
mod extensions;
mod geometry;
mod mapped_range;
mod task;

use std::io;

use nbd_proto::Command;

pub use extensions::{AsyncBackend, InlineBackend, MappedBackend, NeverBlocks};
pub use geometry::{Capabilities, Extent, Geometry, ZeroOptions};
pub use mapped_range::{MappedRange, MappingOwner};
pub use task::{Completion, Task};

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

    /// Whether commands like this have been quick of late. That is no promise, as
    /// [`InlineBackend::never_blocks`] is: the receiving thread executes the command as a worker would,
    /// which saves two switches of threads. If it does block, only that thread waits.
    fn is_quick(&self, _command: &Command) -> bool {
        false
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
