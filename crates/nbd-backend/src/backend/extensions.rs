//! What a backend may offer beyond [`Backend`](crate::Backend), to be faster.

use std::io;

use nbd_proto::Command;

use super::mapped_range::MappedRange;
use super::task::Task;

/// Commands that the receiving thread may execute, which saves two switches of threads.
pub trait InlineBackend: Send + Sync {
    /// Whether this command never blocks. Then the receiving thread executes it.
    fn never_blocks(&self, _command: &Command) -> bool {
        false
    }

    /// Whether this command waits only for storage of this machine, and not long. Then the
    /// receiving thread may execute it while no other request is in flight. Must be false for
    /// commands that other processes or machines answer: they may be gone.
    fn may_block_inline(&self, _command: &Command) -> bool {
        false
    }

    /// Reads without blocking. `Ok(false)` if the data is not in memory: then a worker thread calls
    /// [`read_at`](crate::Backend::read_at), while other requests are executed.
    ///
    /// # Errors
    ///
    /// If the storage cannot be read; the client gets the error.
    fn try_read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<bool> {
        Ok(false)
    }
}

/// Commands of up to so many bytes never block: for storage that is memory or none at all.
#[derive(Clone, Copy, Debug)]
pub struct NeverBlocks(pub u64);

impl InlineBackend for NeverBlocks {
    fn never_blocks(&self, command: &Command) -> bool {
        command.range().1 <= self.0
    }
}

/// Storage that can be mapped in memory, to be sent or received without a copy.
pub trait MappedBackend: Send + Sync {
    /// A range, to be sent from there; `None` if that would block or fail, as far as is known now.
    /// The bytes sent are those at the time of sending, not of the request. A network server may do
    /// that: a client that reads and writes a place at the same time gets either content. A lane may
    /// not: a successor must send the same bytes again.
    fn mapped_range(&self, offset: u64, length: u32) -> Option<MappedRange>;

    /// A range, to be received into. That has the effect of a
    /// [non-blocking](InlineBackend::never_blocks) write, except that readers see it piece by piece,
    /// and that a client that disconnects in the middle of a write has written a part of it.
    ///
    /// [`write_at`](crate::Backend::write_at) must then accept the beginning of the range, of any
    /// length: the data that came before. [`check_received`](Self::check_received) follows.
    fn mapped_range_mut(&self, _offset: u64, _length: u32) -> Option<MappedRange> {
        None
    }

    /// Asks, after bytes were received into a [range](Self::mapped_range_mut), whether they are still
    /// in the storage. Must not block.
    ///
    /// # Errors
    ///
    /// If they may be lost, because the file was truncated meanwhile. A backend that lends ranges to
    /// receive into has to say; without a word of it the bytes are taken for lost.
    fn check_received(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Hints that a range is read or written next, so that the processor can fetch it from memory
    /// while another request is executed. The range was not checked. Must not block.
    fn prefetch(&self, _offset: u64, _length: u32) {}
}

/// Storage that is reached by messages, like another server: it needs no thread that waits.
pub trait AsyncBackend: Send + Sync {
    /// Accepts a task and finishes it later. Must not block.
    fn submit_async(&self, task: Box<dyn Task>);
}
