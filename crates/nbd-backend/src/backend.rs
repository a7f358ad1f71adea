//! The trait that a block device implements.

use std::io;

use nbd_control::backend::ExportInfo;
use nbd_proto::{Command, RequestRules, TransmissionFlags};

use crate::span::Span;
use crate::task::Task;

/// A block device.
///
/// Methods are called from several threads at once. Offsets and lengths were checked: they lie
/// within [`Geometry::size`] and are multiples of [`Geometry::block_size`]. An error becomes an
/// NBD error by its errno; one without becomes EIO.
///
/// Requests may be executed twice, when the first execution was cut short by a crash; so each
/// must have the same effect the second time, as reading and writing blocks do. Writes must have
/// reached the storage's owner (the page cache, another process) when the method returns:
/// an asynchronous write that lands after this process died could undo its successor's.
pub trait Backend: Send + Sync + 'static {
    /// Size, block size and capabilities. Must never change while this process serves a device; a
    /// successor may have a larger size, which `nbd-ctl resize` can give to the device.
    fn geometry(&self) -> Geometry;

    /// Fills `buffer` from `offset`. May block.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Stores `data` at `offset`; durably, if `fua` is set. May block.
    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()>;

    /// Makes all writes that have returned durable. May block.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// The range's content is of no more use; it may read as anything afterwards. May block.
    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes the range read as zeroes. May block.
    fn write_zeroes(&self, _offset: u64, _length: u64, _how: ZeroOptions) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The range will be read soon. May block.
    fn cache(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    /// Reads without waiting: `Ok(false)` if the data is not at hand, and then `read_at` is called
    /// by a worker thread instead while other requests go on.
    fn try_read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// A range where it lies in memory, to be sent from there, if that neither waits nor fails as
    /// far as can be told now. What the range contains is what it contains while it is sent: a
    /// server on the network may do that, as a client that reads and writes a place at the same
    /// time gets either. A lane may not, since what it sends must be the same after a crash.
    fn span(&self, _offset: u64, _length: u32) -> Option<Span> {
        None
    }

    /// A range where it lies in memory, to be received to: the same as a write of it that
    /// [is quick](Self::is_quick), except that others see it come piece by piece, and that a client
    /// that leaves in the middle of a write has written a part of it.
    ///
    /// `write_at` must then take parts of the range, of any length: what came before it, and nothing at
    /// all, which fails if what was received may not be where it was received to any more.
    fn span_mut(&self, _offset: u64, _length: u32) -> Option<Span> {
        None
    }

    /// A range that is read or written next, while another one still is: who has it in memory may have
    /// the processor fetch it meanwhile. A hint, also of ranges that do not exist. Must not block.
    fn prefetch(&self, _offset: u64, _length: u32) {}

    /// Whether this command is certain not to wait for anything slow. Then it is executed where
    /// it was received, which saves the way to a worker and back.
    fn is_quick(&self, _command: &Command) -> bool {
        false
    }

    /// Whether this command waits for nothing but the storage of this machine, and not long. Then it
    /// may be executed where it was received while there is nothing else to do. Never for what
    /// other processes or machines answer: they may be gone.
    fn is_local(&self, _command: &Command) -> bool {
        false
    }

    /// What is allocated and what reads as zeroes, from `offset` on: at least one extent, none of
    /// them empty, no more than `length` bytes together; with `one` a single extent. May block.
    fn extents(&self, _offset: u64, length: u64, _one: bool) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { length, hole: false, zero: false }])
    }

    /// Takes over a task to carry it out without a worker waiting for it, or gives it back: then
    /// the other methods are called.
    ///
    /// For storage that is reached by messages, like another server. Must not block.
    fn start(&self, task: Box<dyn Task>) -> Option<Box<dyn Task>> {
        Some(task)
    }

    /// Nobody will ask for anything any more: the time to take leave of other processes. Called
    /// when serving ends in order, and never when the process is killed. A holder waits for it
    /// fifteen seconds after a detach in order, otherwise two, and then kills the process.
    fn close(&self) {}
}

/// A range of a device that is all in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not 0.
    pub length: u64,
    /// It is not allocated.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// Options of [`Backend::write_zeroes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Make it durable before returning.
    pub fua: bool,
    /// Keep the range allocated.
    pub no_hole: bool,
    /// Fail with `Unsupported`, at once, if it takes as long as writing.
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
    /// What was written is as durable as it ever gets: memory. Clients on the network are offered
    /// flush and FUA all the same, since they like to ask; that succeeds and has nothing to do. The
    /// kernel is not, as it would only cost time.
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
    /// [`Backend::extents`] knows more than that everything is data.
    pub extents: bool,
    /// Requests need not be aligned to [`Geometry::block_size`]. Clients on the network make use
    /// of that, the kernel never does.
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
    /// What it can do.
    pub capabilities: Capabilities,
}

impl Geometry {
    /// The shape of a device that was attached; what the kernel has no use for is taken as
    /// missing.
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

    /// The transmission flags that say so.
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

    /// What requests are checked against.
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

    /// What the holder is told.
    #[must_use]
    pub fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.size,
            block_size: self.block_size,
            // The kernel knows nothing of fast zeroes, so backends that differ in it are the same.
            flags: self.transmission_flags().bits() & !TransmissionFlags::SEND_FAST_ZERO.bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_what_was_attached_is_told_in_the_same_way() {
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
            assert_eq!(fast.info(), geometry.info(), "the kernel does not care");
        }
    }
}
