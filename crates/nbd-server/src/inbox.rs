//! Bytes as they come, kept so that every message lies in one piece and is never copied.

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_backend::{Span, Vigil};
use nbd_net::stream::Receiver;

use crate::limits::{Limits, is_too_slow};
use crate::memory::{Block, Grant, Memory};

/// Size of a connection's first block, in bytes: enough for a client that sends little at once, of
/// whom there may be hundreds …
const FIRST: usize = 64 << 10;
/// … and of the next ones, unless a message is longer.
const BLOCK: usize = 512 << 10;
/// When more than this is missing of a message, only that is received, so that the next message
/// can begin elsewhere without being moved.
const LONG: usize = 64 << 10;

/// The receiving end of a connection.
///
/// It has one block of its own. Longer messages, and those that come while tasks still have a share
/// in that one, lie in the memory that all connections have together.
pub(crate) struct Inbox {
    receiver: Receiver,
    memory: Arc<Memory>,
    /// None for a secured connection, whose next bytes may have come with others.
    vigil: Option<Vigil>,
    /// Unparsed bytes are at `start..end`. What is before them may be shared with tasks.
    block: Arc<Block>,
    start: usize,
    end: usize,
    /// The connection's own block while another one is in use.
    own: Option<Arc<Block>>,
    /// The last message was a long one, and so may be the next.
    expects_long: bool,
    /// More has come at once than there was room for.
    was_full: bool,
    timeout: Duration,
    /// How long the client was waited for since the message began that lies in common memory.
    waited: Duration,
}

/// Why nothing can be received at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Requests of this connection must be finished first.
    Turn,
    /// So much of the common memory is needed; see [`Inbox::grow`].
    Memory(usize),
}

impl Inbox {
    /// `first` came with the end of the handshake.
    pub(crate) fn new(
        mut receiver: Receiver,
        first: &[u8],
        limits: &Limits,
        memory: Arc<Memory>,
    ) -> io::Result<Self> {
        let mut block = Block::own(FIRST.max(first.len()));
        block.bytes_mut()[..first.len()].copy_from_slice(first);
        let timeout = timeout(limits);
        let vigil = (!receiver.is_tls()).then(Vigil::default);
        receiver.set_timeout(Some(timeout))?;
        Ok(Self {
            receiver,
            memory,
            vigil,
            block: Arc::new(block),
            start: 0,
            end: first.len(),
            own: None,
            expects_long: false,
            was_full: false,
            timeout,
            waited: Duration::ZERO,
        })
    }

    /// What has come and was not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.block.bytes()[self.start..self.end]
    }

    /// Forgets the first bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consuming what has not come");
        self.start += count;
        self.waited = Duration::ZERO;
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

    /// Whether some of the common memory is taken up.
    pub(crate) fn holds_memory(&self) -> bool {
        !self.block.is_own()
    }

    /// Whether a message takes up common memory and comes so slowly that others should not have to
    /// wait for it.
    pub(crate) fn is_too_slow(&self, stall: Duration) -> bool {
        let have = (self.end - self.start) as u64;
        self.holds_memory() && have > 0 && is_too_slow(self.waited, have, stall)
    }

    /// How long [`receive`](Self::receive) waits, at most a client's time to be idle.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits for more bytes of the message that the unparsed ones begin, which has `length` bytes
    /// altogether, and for which there must be [room](Self::make_room). Returns how many came; 0 at
    /// the end of the stream.
    pub(crate) fn receive(&mut self, length: usize) -> io::Result<usize> {
        let (have, end) = (self.end - self.start, self.end);
        let missing = length.saturating_sub(have).max(1);
        // The data of a long message is to come into a block of its own at once.
        let is_head_only = have == 0 && std::mem::take(&mut self.expects_long);
        let Some(block) = Arc::get_mut(&mut self.block) else {
            return Err(io::Error::other("a block to receive into is shared"));
        };
        let (whole, is_common) = (block.bytes().len(), !block.is_own());
        // A long message may have to begin where there is no room for all of it.
        let room = if missing > LONG || is_head_only { whole.min(end + missing) } else { whole };
        let room = &mut block.bytes_mut()[end..room];
        let socket = Arc::clone(self.receiver.socket());
        let begun = is_common.then(Instant::now);
        let received = match &mut self.vigil {
            Some(vigil) => vigil.keep(socket.as_fd(), || self.receiver.receive(room)),
            None => self.receiver.receive(room),
        };
        self.waited += begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        let count = received?;
        self.end += count;
        self.was_full = self.end == whole;
        Ok(count)
    }

    /// Whether data can be received to where it belongs. To decrypt it is to change it.
    pub(crate) fn takes_spans(&self) -> bool {
        !self.receiver.is_tls()
    }

    /// Receives into a span, of which the rest is left over, and `head` bytes of what follows. All
    /// that has come before was consumed. Returns 0 at the end of the stream.
    #[allow(unsafe_code)]
    pub(crate) fn receive_into(&mut self, span: &mut Span, head: usize) -> io::Result<usize> {
        assert_eq!(self.start, self.end, "data that has come is in the way");
        let room = match Arc::get_mut(&mut self.block) {
            Some(block) => {
                (self.start, self.end) = (0, 0);
                &mut block.bytes_mut()[..head]
            }
            // A task still works on what came last.
            None => &mut [],
        };
        let wanted = span.len();
        // SAFETY: the slice is for recvmsg(2) alone: a secured connection takes no spans.
        let parts = &mut [unsafe { span.io_slice_mut() }, IoSliceMut::new(room)];
        let socket = self.receiver.socket();
        let mut receive = || socket.receive_parts(parts);
        let count = match &mut self.vigil {
            Some(vigil) => vigil.keep(socket.as_fd(), receive),
            None => receive(),
        }?;
        span.consume(count.min(wanted));
        self.end = self.start + count.saturating_sub(wanted);
        self.expects_long = true;
        Ok(count)
    }

    /// Sees to it that the block is ours alone and has room for a message of `length` bytes.
    pub(crate) fn make_room(&mut self, length: usize) -> Result<(), Lack> {
        let have = self.end - self.start;
        let mut needed = have + length.saturating_sub(have).max(1);
        if needed > BLOCK && self.begins_at_home(have) {
            needed = BLOCK;
        } else if needed > BLOCK {
            return self.make_long_room(needed);
        }
        if !self.block.is_own() {
            self.go_home();
        }
        if self.block.is_own() && self.is_too_small(needed) {
            self.change_block(Block::own(BLOCK).into());
            return Ok(());
        }
        // What was for a long message is for no other.
        let is_usual = self.block.is_own() || self.block.bytes().len() == BLOCK;
        if is_usual && Arc::get_mut(&mut self.block).is_some() {
            self.make_way(needed - have);
            return Ok(());
        }
        let grant = self.memory.try_take(BLOCK as u64).ok_or(Lack::Turn)?;
        self.change_block(self.memory.block(grant, BLOCK).into());
        Ok(())
    }

    /// Whether the beginning of a long message comes into the connection's own block: where common
    /// memory is scarce, a header alone does not get any. It costs a copy, so only there.
    fn begins_at_home(&mut self, have: usize) -> bool {
        have < BLOCK
            && self.block.is_own()
            && Arc::get_mut(&mut self.block).is_some()
            && self.memory.is_scarce()
    }

    /// Whether the first block of a connection has had its time: there is not enough room, never
    /// was, or none while a task has a share in it.
    fn is_too_small(&mut self, needed: usize) -> bool {
        let whole = self.block.bytes().len();
        whole < BLOCK
            && (needed > whole || self.was_full || Arc::get_mut(&mut self.block).is_none())
    }

    fn make_long_room(&mut self, needed: usize) -> Result<(), Lack> {
        let is_there = self.start == 0 && self.block.bytes().len() == needed;
        if is_there && self.holds_memory() && Arc::get_mut(&mut self.block).is_some() {
            return Ok(());
        }
        match self.memory.try_take(needed as u64) {
            Some(grant) => self.grow(grant, needed),
            None => return self.let_go().and(Err(Lack::Memory(needed))),
        }
        Ok(())
    }

    /// Has the beginning of a long message go on in memory that was granted for it.
    pub(crate) fn grow(&mut self, grant: Grant, needed: usize) {
        self.change_block(self.memory.block(grant, needed).into());
        self.expects_long = true;
    }

    /// Takes up none of the common memory: nobody may have some and wait for more.
    pub(crate) fn let_go(&mut self) -> Result<(), Lack> {
        if self.block.is_own() || self.go_home() { Ok(()) } else { Err(Lack::Turn) }
    }

    /// Goes back to the connection's own block, if no task has a share in it. Where that is the first
    /// one and too small, it is exchanged for a larger one.
    fn go_home(&mut self) -> bool {
        let have = self.end - self.start;
        let Some(mut own) = self.own.take_if(|_| have <= BLOCK) else {
            return false;
        };
        let is_free = Arc::get_mut(&mut own).is_some();
        if own.bytes().len() >= have && is_free {
            self.change_block(own);
        } else if own.bytes().len() < BLOCK {
            self.change_block(Block::own(BLOCK).into());
        } else {
            self.own = Some(own);
            return false;
        }
        true
    }

    /// Makes room for so many bytes more in this block. A little more is better: the next message
    /// can begin there as well.
    fn make_way(&mut self, missing: usize) {
        let Some(block) = Arc::get_mut(&mut self.block) else {
            return;
        };
        let (have, whole) = (self.end - self.start, block.bytes().len());
        if have == 0 {
            (self.start, self.end) = (0, 0);
        } else if self.end + missing.max(LONG.min(whole - have - missing)) > whole {
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
        self.waited = Duration::ZERO;
        // One that was too small is not kept.
        if used.is_own() && !self.block.is_own() {
            self.own = Some(used);
        }
    }
}

/// Often enough to see who is idle and who holds up others, and a whole part of the time to be idle.
fn timeout(limits: &Limits) -> Duration {
    let Some(idle) = limits.idle else {
        return limits.stall;
    };
    let parts = idle.as_nanos().div_ceil(limits.stall.as_nanos().max(1));
    idle / u32::try_from(parts).unwrap_or(u32::MAX).max(1) + Duration::from_nanos(1)
}

/// The data of a write, where it was received.
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
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use nbd_net::socket::Socket;
    use nbd_net::stream::Stream;

    use super::*;

    /// One with so much common memory, and its client.
    fn inbox(memory: u64) -> (Inbox, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (receiver, _) = Stream::plain(Socket::from_fd(ours.into()).unwrap()).split();
        let inbox = Inbox::new(receiver, &[], &Limits::default(), Memory::new(memory));
        (inbox.unwrap(), theirs)
    }

    /// Has a message come, which is told how it ends.
    fn receive(inbox: &mut Inbox, client: &mut UnixStream, length: usize) {
        let message: Vec<u8> = (0..length).map(|at| at as u8 ^ (at >> 8) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| client.write_all(&message).unwrap());
            while inbox.bytes().len() < length {
                inbox.make_room(length).unwrap();
                assert_ne!(inbox.receive(length).unwrap(), 0);
            }
        });
        assert!(inbox.bytes() == message);
    }

    fn size(inbox: &Inbox) -> usize {
        inbox.block.bytes().len()
    }

    #[test]
    fn small_messages_need_little_memory() {
        let (mut inbox, mut client) = inbox(1);
        for length in [28, 4124, 28, 60_000, 4124] {
            receive(&mut inbox, &mut client, length);
            inbox.consume(length);
            assert_eq!(size(&inbox), FIRST);
        }
        receive(&mut inbox, &mut client, FIRST + 1);
        inbox.consume(FIRST + 1);
        assert_eq!(size(&inbox), BLOCK);
    }

    #[test]
    fn much_at_once_needs_more_the_next_time() {
        let (mut inbox, mut client) = inbox(1);
        client.write_all(&[7; FIRST + 100]).unwrap();
        inbox.make_room(28).unwrap();
        assert_eq!(inbox.receive(28).unwrap(), FIRST);
        inbox.consume(FIRST - 10);
        inbox.make_room(28).unwrap();
        assert_eq!((inbox.receive(28).unwrap(), size(&inbox)), (100, BLOCK));
        assert_eq!(inbox.bytes(), [7; 110]);
    }

    #[test]
    fn a_task_keeps_what_it_has_a_share_in() {
        let (mut inbox, mut client) = inbox(1);
        let _others = inbox.memory.try_take(1).unwrap();
        receive(&mut inbox, &mut client, 5000);
        let (payload, expected) = (inbox.share(1000..5000), inbox.bytes()[1000..5000].to_vec());
        inbox.consume(5000);
        receive(&mut inbox, &mut client, 28);
        assert_eq!(size(&inbox), BLOCK);
        assert_eq!(payload.as_slice(), expected);
        // That one is all there is.
        let _payload = inbox.share(0..28);
        assert_eq!(inbox.make_room(100), Err(Lack::Turn));
    }

    #[test]
    fn a_long_message_begins_at_home_where_memory_is_scarce() {
        let (mut inbox, mut client) = inbox(8 << 20);
        let others = inbox.memory.try_take((4 << 20) + 1).unwrap();
        let length = BLOCK + 100_000;
        client.write_all(&[7; 4096]).unwrap();
        inbox.make_room(length).unwrap();
        assert_eq!(inbox.receive(length).unwrap(), 4096);
        assert!(!inbox.holds_memory());
        std::thread::scope(|scope| {
            scope.spawn(|| client.write_all(&vec![7; BLOCK - 4096]).unwrap());
            while inbox.bytes().len() < BLOCK {
                inbox.make_room(length).unwrap();
                inbox.receive(length).unwrap();
            }
        });
        inbox.make_room(length).unwrap();
        assert!(inbox.holds_memory() && inbox.bytes() == [7; BLOCK]);
        drop(others);
    }

    #[test]
    fn after_a_long_message_everything_fits_at_home() {
        let (mut inbox, mut client) = inbox(8 << 20);
        receive(&mut inbox, &mut client, BLOCK + 1);
        assert!(inbox.holds_memory());
        // As much is left as the first block never had room for.
        inbox.consume(BLOCK + 1 - 2 * FIRST);
        let rest = inbox.bytes().to_vec();
        inbox.let_go().unwrap();
        assert!(!inbox.holds_memory());
        assert_eq!((inbox.bytes(), size(&inbox)), (&rest[..], BLOCK));
    }
}
