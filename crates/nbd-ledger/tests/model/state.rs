//! The model's state: the ledger's words, what the kernel has seen, and what a living backend knows.
//!
//! Names are those of `nbd_ledger::layout`, and numbers mean the same. Only epochs are kept modulo
//! 2, which is all that they are used for. Bytes are told apart by where they come from: a byte of
//! the ring is a stream position, a byte of the transmit area a request and a place in its reply.

use std::collections::VecDeque;

use nbd_ledger::layout::{FIRST_SEQUENCE, SlotState};

use crate::fault::Fault;
use crate::step::Op;

/// Sizes, and what the kernel asks for. Tiny for the search, the real ones for the comparison.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Bytes of a request's and of a reply's header.
    pub(crate) header: u32,
    pub(crate) reply: u32,
    pub(crate) ring: u32,
    pub(crate) area: u32,
    pub(crate) slots: usize,
    /// Longest payload that is kept; a longer one is skipped.
    pub(crate) max_payload: u32,
    /// The most bytes of one receive.
    pub(crate) max_receive: u32,
    /// A remainder of at most this size moves to the ring's beginning, or any that lies so far.
    pub(crate) small_remainder: u32,
    pub(crate) rewind_after: u32,
    pub(crate) requests: Vec<Request>,
    /// A bug to be found.
    pub(crate) fault: Option<Fault>,
}

/// A request is known by its place in [`Config::requests`].
pub(crate) type Name = u8;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) payload: u32,
    /// Bytes that its reply returns.
    pub(crate) data: u32,
}

impl Config {
    pub(crate) fn names(&self) -> impl Iterator<Item = Name> {
        0..self.requests.len() as Name
    }

    pub(crate) fn request(&self, name: Name) -> &Request {
        &self.requests[usize::from(name)]
    }

    /// Bytes of a request in the stream.
    pub(crate) fn length(&self, name: Name) -> u32 {
        self.header + self.request(name).payload
    }

    /// Stream position of a request.
    pub(crate) fn start(&self, name: Name) -> u32 {
        (0..name).map(|earlier| self.length(earlier)).sum()
    }

    /// Bytes of all requests.
    pub(crate) fn total(&self) -> u32 {
        self.start(self.requests.len() as Name)
    }

    /// The request that begins at a stream position.
    pub(crate) fn at(&self, position: u32) -> Option<Name> {
        self.names().find(|&name| self.start(name) == position)
    }

    pub(crate) fn reply_length(&self, name: Name) -> u32 {
        self.reply + self.request(name).data
    }

    /// Stream position up to which a request must have come before it is answered: the payload of
    /// one that is refused for its length need not.
    pub(crate) fn needed(&self, name: Name) -> u32 {
        self.start(name) + self.header.max(self.kept(name))
    }

    /// Bytes of a request that must stay in the ring until it is answered.
    pub(crate) fn kept(&self, name: Name) -> u32 {
        let payload = self.request(name).payload;
        if payload == 0 || payload > self.max_payload { 0 } else { self.header + payload }
    }
}

/// A byte of a reply.
pub(crate) type ReplyByte = (Name, u32);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ReceiveRecord {
    pub(crate) received: u32,
    pub(crate) base: u32,
    pub(crate) wanted: u32,
    pub(crate) msg_len: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TransmitRecord {
    pub(crate) sequence: u32,
    pub(crate) length: u32,
    pub(crate) sent: u32,
    pub(crate) msg_len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    /// [`SlotState`], encoded.
    pub(crate) state: u32,
    pub(crate) position: u32,
    pub(crate) request: Option<Name>,
}

impl Slot {
    pub(crate) fn state(&self) -> SlotState {
        SlotState::decode(self.state.into())
    }
}

/// What a backend leaves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ledger {
    pub(crate) receive_epoch: u8,
    pub(crate) receive: [ReceiveRecord; 2],
    pub(crate) parsed: u32,
    pub(crate) transmit_epoch: u8,
    pub(crate) transmit: [TransmitRecord; 2],
    pub(crate) slots: Vec<Slot>,
    /// The stream position whose byte lies there.
    pub(crate) ring: Vec<Option<u32>>,
    pub(crate) area: Vec<Option<ReplyByte>>,
}

impl Ledger {
    pub(crate) fn receiving(&self) -> &ReceiveRecord {
        &self.receive[usize::from(self.receive_epoch)]
    }

    pub(crate) fn transmitting(&self) -> &TransmitRecord {
        &self.transmit[usize::from(self.transmit_epoch)]
    }

    /// Stream position behind the last byte received.
    pub(crate) fn received(&self) -> u32 {
        self.receiving().received + self.receiving().msg_len
    }

    /// Bytes of the last transmission that the kernel has.
    pub(crate) fn sent(&self) -> u32 {
        self.transmitting().sent + self.transmitting().msg_len
    }

    /// Whether a slot holds a request that a successor must execute.
    pub(crate) fn waits(&self, slot: &Slot) -> bool {
        match slot.state() {
            SlotState::Vacant => false,
            SlotState::Pending => slot.position < self.parsed,
            SlotState::Staged(n) => n > self.transmitting().sequence.into(),
        }
    }

    /// Whether the ring holds the bytes of a range of the stream, as the valid record places them.
    pub(crate) fn holds(&self, from: u32, to: u32) -> bool {
        let base = self.receiving().base;
        let size = self.ring.len() as u32;
        (from..to).all(|position| {
            let place = position.checked_sub(base).map(|offset| (offset % size) as usize);
            to - from <= size && place.is_some_and(|place| self.ring[place] == Some(position))
        })
    }
}

/// What the other end of the lane has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    /// Bytes of requests that were taken from the socket.
    pub(crate) taken: u32,
    /// Requests whose replies came, as a set of bits.
    pub(crate) answered: u32,
    /// A reply of which only a part came, and the byte that must come next.
    pub(crate) part: Option<ReplyByte>,
}

impl Kernel {
    pub(crate) fn has(&self, name: Name) -> bool {
        self.answered & (1 << name) != 0
    }
}

/// A request that a backend has to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket {
    pub(crate) slot: usize,
    pub(crate) request: Name,
    /// Where its payload lies in the ring.
    pub(crate) payload: u32,
}

/// What dies with a backend: the fields of `Receiver` and of `Transmitter`, what each of the two
/// has begun to do, and the tickets between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) received: u32,
    pub(crate) base: u32,
    pub(crate) parsed: u32,
    pub(crate) receive_epoch: u8,
    pub(crate) writes: VecDeque<(usize, u32)>,
    pub(crate) cursor: usize,
    /// Tickets of a `take` that has not returned.
    pub(crate) taking: Vec<Ticket>,
    pub(crate) receiver: VecDeque<Op>,
    /// The lane is not open yet: there is no transmitter.
    pub(crate) recovering: bool,

    pub(crate) transmit_epoch: u8,
    pub(crate) sequence: u32,
    pub(crate) unfinished: u32,
    pub(crate) staged: u32,
    pub(crate) transmitter: VecDeque<Op>,

    pub(crate) complete: u32,
    pub(crate) tickets: Vec<Ticket>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) kernel: Kernel,
    pub(crate) process: Option<Process>,
    /// Requests that were executed at least once, as a set of bits.
    pub(crate) executed: u32,
    pub(crate) crashes: u8,
    /// The invariant that a step has violated.
    pub(crate) broken: Option<&'static str>,
}

impl State {
    /// A new ledger without a backend.
    pub(crate) fn new(config: &Config) -> Self {
        let first = TransmitRecord { sequence: FIRST_SEQUENCE as u32, ..TransmitRecord::default() };
        let vacant = Slot { state: 0, position: 0, request: None };
        let ledger = Ledger {
            receive_epoch: 0,
            receive: [ReceiveRecord::default(); 2],
            parsed: 0,
            transmit_epoch: 0,
            transmit: [first, TransmitRecord::default()],
            slots: vec![vacant; config.slots],
            ring: vec![None; config.ring as usize],
            area: vec![None; config.area as usize],
        };
        Self {
            ledger,
            kernel: Kernel::default(),
            process: None,
            executed: 0,
            crashes: 0,
            broken: None,
        }
    }

    /// Every request is answered and nothing is left to be received.
    pub(crate) fn is_complete(&self, config: &Config) -> bool {
        self.kernel.taken == config.total() && config.names().all(|name| self.kernel.has(name))
    }
}
