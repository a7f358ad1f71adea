//! Bytes as they come, kept so that every message lies in one piece and is never copied.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use nbd_net::stream::Receiver;

/// Size of a block, in bytes, unless a message is longer.
const BLOCK: usize = 512 << 10;
/// When more than this is missing of a message, only that is received, so that the next message
/// can begin elsewhere without being moved.
const LONG: usize = 64 << 10;
/// Memory that one connection keeps for the payloads of its next requests.
const POOL: usize = 64 << 20;
/// After so many calls without a long message the memory for them is given back.
const CALM: u32 = 4096;

/// The receiving end of a connection.
pub(crate) struct Inbox {
    receiver: Receiver,
    /// Unparsed bytes are at `start..end`. What is before them may be shared with tasks.
    block: Arc<Vec<u8>>,
    start: usize,
    end: usize,
    /// Blocks that tasks may still have a share in.
    pool: Vec<Arc<Vec<u8>>>,
    calm: u32,
}

impl Inbox {
    /// `first` came with the end of the handshake.
    pub(crate) fn new(receiver: Receiver, first: &[u8]) -> Self {
        let mut block = vec![0; BLOCK.max(first.len())];
        block[..first.len()].copy_from_slice(first);
        let block = Arc::new(block);
        Self { receiver, block, start: 0, end: first.len(), pool: Vec::new(), calm: 0 }
    }

    /// What has come and was not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// Forgets the first bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consuming what has not come");
        self.start += count;
    }

    /// A part of [`bytes`](Self::bytes) that stays when they are consumed.
    pub(crate) fn share(&self, range: Range<usize>) -> Payload {
        let range = self.start + range.start..self.start + range.end;
        Payload { block: Some(Arc::clone(&self.block)), range }
    }

    /// Waits for more bytes of the message that the unparsed ones begin, which has `length` bytes
    /// altogether. Returns how many came; 0 at the end of the stream.
    pub(crate) fn receive(&mut self, length: usize) -> io::Result<usize> {
        let missing = length.saturating_sub(self.end - self.start).max(1);
        self.make_room(missing);
        let end = self.end;
        let Some(block) = Arc::get_mut(&mut self.block) else {
            return Err(io::Error::other("a block to receive into is shared"));
        };
        let room = if missing > LONG { end + missing } else { block.len() };
        let count = self.receiver.receive(&mut block[end..room])?;
        self.end += count;
        Ok(count)
    }

    /// Sees to it that the block is ours alone and has room for `missing` more bytes.
    fn make_room(&mut self, missing: usize) {
        let have = self.end - self.start;
        let needed = have + missing;
        self.calm = if needed > BLOCK { 0 } else { self.calm.saturating_add(1) };
        if self.calm == CALM {
            self.pool.clear();
        }
        let is_oversized = self.calm >= CALM && self.block.len() > BLOCK;
        match Arc::get_mut(&mut self.block) {
            Some(block) if needed <= block.len() && !is_oversized => {
                if have == 0 {
                    (self.start, self.end) = (0, 0);
                } else if self.end + missing.max(LONG.min(block.len() - needed)) > block.len() {
                    block.copy_within(self.start..self.end, 0);
                    (self.start, self.end) = (0, have);
                }
            }
            _ => self.change_block(needed),
        }
    }

    fn change_block(&mut self, needed: usize) {
        let mut fresh = self.take_block(needed.max(BLOCK));
        let have = self.end - self.start;
        if let Some(fresh) = Arc::get_mut(&mut fresh) {
            fresh[..have].copy_from_slice(&self.block[self.start..self.end]);
        }
        let used = std::mem::replace(&mut self.block, fresh);
        (self.start, self.end) = (0, have);
        let pooled: usize = self.pool.iter().map(|block| block.len()).sum();
        if self.calm < CALM && pooled + used.len() <= POOL {
            self.pool.push(used);
        }
    }

    fn take_block(&mut self, size: usize) -> Arc<Vec<u8>> {
        let fits = |block: &mut Arc<Vec<u8>>| block.len() >= size && Arc::get_mut(block).is_some();
        match self.pool.iter_mut().position(fits) {
            Some(index) => self.pool.swap_remove(index),
            None => Arc::new(vec![0; size]),
        }
    }
}

/// The data of a write, where it was received.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    block: Option<Arc<Vec<u8>>>,
    range: Range<usize>,
}

impl Payload {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match &self.block {
            Some(block) => &block[self.range.clone()],
            None => &[],
        }
    }
}
