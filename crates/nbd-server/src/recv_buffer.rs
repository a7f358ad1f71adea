//! Received bytes, arranged so that each message is contiguous and rarely copied.

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_backend::{BusyPoll, MappedRange};
use nbd_net::stream::Receiver;

use crate::limits::{Lag, Limits};
use crate::memory_budget::{Block, Grant, MemoryBudget};

/// Size of a connection's first block, in bytes. Small, because a server may have hundreds of
/// clients that send little at once ...
const INITIAL_BLOCK_SIZE: usize = 64 << 10;
/// ... and of later blocks, unless a message is longer.
const BLOCK_SIZE: usize = 512 << 10;
/// If more bytes than this are still to come of a message, only those are received, so that the
/// next message begins in another block and need not be moved.
const MIN_LONG_MESSAGE: usize = 64 << 10;

/// The receiving end of a connection.
///
/// It has one block of its own. Longer messages, and those that come while tasks still have a share
/// in that one, lie in the memory that all connections have together.
pub(crate) struct RecvBuffer {
    receiver: Receiver,
    memory: Arc<MemoryBudget>,
    /// None for TLS: the next bytes may lie decrypted in the receiver while the socket is empty.
    busy_poll: Option<BusyPoll>,
    /// Unparsed bytes are at `start..end`. What is before them may be shared with tasks.
    block: Arc<Block>,
    start: usize,
    end: usize,
    /// The connection's own block while another one is in use.
    own: Option<Arc<Block>>,
    /// The last message was long, so the next one may be long, too.
    expects_long: bool,
    /// The last receive filled the block, so more may wait in the socket.
    was_full: bool,
    timeout: Duration,
    /// How slowly the message comes that lies in common memory.
    lag: Lag,
}

/// Why nothing can be received now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// Requests of this connection must be finished first.
    TasksPending,
    /// Common memory for a message of this many bytes is needed; see [`RecvBuffer::begin_long`].
    NeedsMemory(usize),
    /// The next step of the memory for this message is needed; see [`RecvBuffer::wait_for_step`].
    NeedsStep,
}

impl RecvBuffer {
    /// `first` came with the end of the handshake.
    pub(crate) fn new(
        mut receiver: Receiver,
        first: &[u8],
        limits: &Limits,
        memory: Arc<MemoryBudget>,
    ) -> io::Result<Self> {
        let mut block = Block::own(INITIAL_BLOCK_SIZE.max(first.len()));
        block.bytes_mut()[..first.len()].copy_from_slice(first);
        let timeout = timeout(limits);
        let busy_poll = (!receiver.is_tls()).then(BusyPoll::default);
        receiver.set_timeout(Some(timeout))?;
        Ok(Self {
            receiver,
            memory,
            busy_poll,
            block: Arc::new(block),
            start: 0,
            end: first.len(),
            own: None,
            expects_long: false,
            was_full: false,
            timeout,
            lag: Lag::default(),
        })
    }

    /// The bytes that were received and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.block.bytes()[self.start..self.end]
    }

    /// Forgets the first bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consuming what has not come");
        self.start += count;
        self.lag = Lag::default();
    }

    /// A part of [`bytes`](Self::bytes) that stays when they are consumed.
    pub(crate) fn share(&self, range: Range<usize>) -> Payload {
        let range = self.start + range.start..self.start + range.end;
        Payload { block: Some(Arc::clone(&self.block)), range }
    }

    /// Forgets everything; nothing more is received.
    pub(crate) fn close(&mut self) {
        (self.block, self.start, self.end) = (Arc::new(Block::own(0)), 0, 0);
    }

    /// Whether the received bytes lie in common memory.
    pub(crate) fn holds_memory(&self) -> bool {
        !self.block.is_own()
    }

    /// Whether a message in common memory comes too slowly for others to wait for that memory.
    pub(crate) fn is_too_slow(&self, stall: Duration) -> bool {
        self.holds_memory() && self.end > self.start && self.lag.exceeds(stall)
    }

    /// How long [`receive`](Self::receive) waits: at most [`Limits::idle`].
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits for more bytes of the message that the unparsed ones begin, which has `length` bytes
    /// altogether, and for which there must be [room](Self::make_room). Returns how many came; 0 at
    /// the end of the stream.
    pub(crate) fn receive(&mut self, length: usize) -> io::Result<usize> {
        let (have, end) = (self.end - self.start, self.end);
        let missing = length.saturating_sub(have).max(1);
        // Receive only the header: the data of a long message then goes to a block of its own.
        let is_head_only = have == 0 && std::mem::take(&mut self.expects_long);
        let Some(block) = Arc::get_mut(&mut self.block) else {
            return Err(io::Error::other("a block to receive into is shared"));
        };
        let (usable, is_common) = (block.usable(), !block.is_own());
        // A long message may begin in a block that is too small for all of it.
        let room = if missing > MIN_LONG_MESSAGE || is_head_only {
            usable.min(end + missing)
        } else {
            usable
        };
        let room = &mut block.bytes_mut()[end..room];
        let socket = Arc::clone(self.receiver.socket());
        let begun = is_common.then(Instant::now);
        let received = match &mut self.busy_poll {
            Some(busy_poll) => busy_poll.receive(socket.as_fd(), || self.receiver.receive(room)),
            None => self.receiver.receive(room),
        };
        self.lag.waited(begun.map_or(Duration::ZERO, |begun| begun.elapsed()));
        let count = received?;
        self.lag.moved(count as u64);
        self.end += count;
        self.was_full = self.end == usable;
        Ok(count)
    }

    /// Whether data can be received directly into the storage's memory. With TLS it cannot, as it
    /// must be decrypted first.
    pub(crate) fn supports_mapped(&self) -> bool {
        !self.receiver.is_tls()
    }

    /// Receives into a range, which keeps the part that is still to come, and up to `head` bytes of
    /// the next message. All received bytes must have been consumed. Returns 0 at the end of the
    /// stream.
    #[allow(unsafe_code)]
    pub(crate) fn receive_into(
        &mut self,
        range: &mut MappedRange,
        head: usize,
    ) -> io::Result<usize> {
        assert_eq!(self.start, self.end, "data that has come is in the way");
        let room = match Arc::get_mut(&mut self.block) {
            Some(block) => {
                (self.start, self.end) = (0, 0);
                &mut block.bytes_mut()[..head]
            }
            // A task still uses data in this block.
            None => &mut [],
        };
        let wanted = range.len();
        // SAFETY: the slice is for recvmsg(2) alone: a secured connection takes no ranges.
        let parts = &mut [unsafe { range.io_slice_mut() }, IoSliceMut::new(room)];
        let socket = self.receiver.socket();
        let mut receive = || socket.receive_parts(parts);
        let count = match &mut self.busy_poll {
            Some(busy_poll) => busy_poll.receive(socket.as_fd(), receive),
            None => receive(),
        }?;
        range.consume(count.min(wanted));
        self.end = self.start + count.saturating_sub(wanted);
        self.expects_long = true;
        Ok(count)
    }

    /// Makes sure that no task shares the block and that it has room for a message of `length`
    /// bytes.
    pub(crate) fn make_room(&mut self, length: usize) -> Result<(), Blocked> {
        let have = self.end - self.start;
        let mut needed = have + length.saturating_sub(have).max(1);
        if needed > BLOCK_SIZE && self.fits_own_buffer_first(have, needed) {
            needed = BLOCK_SIZE;
        } else if needed > BLOCK_SIZE {
            return self.make_long_room(needed);
        }
        if !self.block.is_own() {
            self.restore_own_buffer();
        }
        if self.block.is_own() && self.is_too_small(needed) {
            self.change_block(Block::own(BLOCK_SIZE).into());
            return Ok(());
        }
        // A block of another size was for one long message.
        let is_usual = self.block.is_own() || self.block.size() == BLOCK_SIZE;
        if is_usual && Arc::get_mut(&mut self.block).is_some() {
            self.compact(needed - have);
            return Ok(());
        }
        let grant = self.memory.try_take(BLOCK_SIZE as u64).ok_or(Blocked::TasksPending)?;
        self.change_block(self.memory.block(grant, BLOCK_SIZE).into());
        Ok(())
    }

    /// Whether the beginning of a long message goes to the connection's own block first: while
    /// common memory is scarce, a client gets none for a header alone. Costs a copy, so not
    /// otherwise.
    fn fits_own_buffer_first(&mut self, have: usize, needed: usize) -> bool {
        have < BLOCK_SIZE
            && self.block.is_own()
            && Arc::get_mut(&mut self.block).is_some()
            && self.memory.is_scarce(needed as u64)
    }

    /// Whether a larger block must replace the connection's first one: the message does not
    /// fit, the last receive filled it, or a task shares it.
    fn is_too_small(&mut self, needed: usize) -> bool {
        let whole = self.block.bytes().len();
        whole < BLOCK_SIZE
            && (needed > whole || self.was_full || Arc::get_mut(&mut self.block).is_none())
    }

    fn make_long_room(&mut self, needed: usize) -> Result<(), Blocked> {
        let is_there = self.start == 0 && self.block.size() == needed && self.holds_memory();
        if is_there && let Some(block) = Arc::get_mut(&mut self.block) {
            let has_room = self.end < block.usable() || block.try_grow();
            return if has_room { Ok(()) } else { Err(Blocked::NeedsStep) };
        }
        match self.memory.try_begin(needed as u64) {
            Some(grant) => self.begin_long(grant, needed),
            None => return self.release_shared().and(Err(Blocked::NeedsMemory(needed))),
        }
        Ok(())
    }

    /// Moves the beginning of a long message to the memory that was granted for it.
    pub(crate) fn begin_long(&mut self, grant: Grant, needed: usize) {
        self.change_block(self.memory.block(grant, needed).into());
        self.expects_long = true;
    }

    /// Waits for the next step of the memory for this message. `false` if the client is gone.
    pub(crate) fn wait_for_step(&mut self, is_gone: impl FnMut() -> bool) -> bool {
        Arc::get_mut(&mut self.block).is_none_or(|block| block.grow(is_gone))
    }

    /// Releases the common memory. A connection must not hold some while it waits in the queue for
    /// more: two that do could wait for each other for ever. Steps are another matter.
    pub(crate) fn release_shared(&mut self) -> Result<(), Blocked> {
        if self.block.is_own() || self.restore_own_buffer() {
            Ok(())
        } else {
            Err(Blocked::TasksPending)
        }
    }

    /// Goes back to the connection's own block, if no task shares it. Replaces the first block by a
    /// larger one where it is too small.
    fn restore_own_buffer(&mut self) -> bool {
        let have = self.end - self.start;
        let Some(mut own) = self.own.take_if(|_| have <= BLOCK_SIZE) else {
            return false;
        };
        let is_free = Arc::get_mut(&mut own).is_some();
        if own.bytes().len() >= have && is_free {
            self.change_block(own);
        } else if own.bytes().len() < BLOCK_SIZE {
            self.change_block(Block::own(BLOCK_SIZE).into());
        } else {
            self.own = Some(own);
            return false;
        }
        true
    }

    /// Makes room for `missing` more bytes in this block, and if possible for the beginning of the
    /// next message.
    fn compact(&mut self, missing: usize) {
        let Some(block) = Arc::get_mut(&mut self.block) else {
            return;
        };
        let (have, whole) = (self.end - self.start, block.bytes().len());
        if have == 0 {
            (self.start, self.end) = (0, 0);
        } else if self.end + missing.max(MIN_LONG_MESSAGE.min(whole - have - missing)) > whole {
            block.bytes_mut().copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, have);
        }
    }

    fn change_block(&mut self, mut fresh: Arc<Block>) {
        let have = self.end - self.start;
        if let Some(fresh) = Arc::get_mut(&mut fresh) {
            fresh.bytes_mut()[..have].copy_from_slice(self.bytes());
        }
        let used = std::mem::replace(&mut self.block, fresh);
        (self.start, self.end) = (0, have);
        self.lag = Lag::default();
        // A block of the connection's own that another one of its own replaces was too small.
        if used.is_own() && !self.block.is_own() {
            self.own = Some(used);
        }
    }
}

/// The socket's timeout: short enough to check [`Limits::stall`], and a whole fraction of
/// [`Limits::idle`], so that the sum of the timeouts meets it.
fn timeout(limits: &Limits) -> Duration {
    let Some(idle) = limits.idle else {
        return limits.stall;
    };
    let parts = idle.as_nanos().div_ceil(limits.stall.as_nanos().max(1));
    idle / u32::try_from(parts).unwrap_or(u32::MAX).max(1) + Duration::from_nanos(1)
}

/// The data of a write, in the block into which it was received.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    block: Option<Arc<Block>>,
    range: Range<usize>,
}

impl Payload {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match &self.block {
            Some(block) => &block.bytes()[self.range.clone()],
            None => &[],
        }
    }
}

#[cfg(test)]
mod tests;
