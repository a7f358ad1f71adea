//! Atomic steps: one store, or one system call of the kernel's, and nothing smaller.

use nbd_ledger::CrashPoint;

use crate::invariant;
use crate::state::{Config, Kernel, Name, ReceiveRecord, ReplyByte, State, TransmitRecord};

/// A step, and the crash point that the code names behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Op {
    pub(crate) effect: Effect,
    pub(crate) point: Option<CrashPoint>,
}

/// Stores are named by what they store to; `u8` is the record of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    /// Nothing that a successor can see.
    Nothing,
    /// A byte of the ring moves.
    RingByte {
        from: u32,
        to: u32,
    },
    Received(u8, u32),
    Base(u8, u32),
    Wanted(u8, u32),
    ClearReceived(u8),
    ReceiveEpoch(u8),
    /// `recvmmsg` into the ring, from an offset on.
    Receive {
        record: u8,
        offset: u32,
        wanted: u32,
    },
    SlotPosition(usize, u32),
    SlotRequest(usize, Name),
    SlotState(usize, u32),
    Parsed(u32),
    /// The lane is open.
    Recovered,
    AreaByte(u32, ReplyByte),
    /// A byte of the transmit area moves.
    AreaMove {
        from: u32,
        to: u32,
    },
    Sequence(u8, u32),
    Length(u8, u32),
    Sent(u8, u32),
    ClearSent(u8),
    TransmitEpoch(u8),
    /// `sendmmsg` of the transmission's bytes from one on.
    Send {
        record: u8,
        from: u32,
        length: u32,
    },
}

impl Effect {
    pub(crate) fn then(self, point: CrashPoint) -> Op {
        Op { effect: self, point: Some(point) }
    }

    pub(crate) fn op(self) -> Op {
        Op { effect: self, point: None }
    }

    /// How many bytes the kernel may pass: it chooses. Sending none is an error.
    pub(crate) fn choices(&self, config: &Config, kernel: &Kernel) -> Vec<u32> {
        match *self {
            Self::Receive { wanted, .. } => {
                (1..=wanted.min(config.total() - kernel.taken)).collect()
            }
            Self::Send { from, length, .. } => (0..=length - from).collect(),
            _ => vec![0],
        }
    }
}

impl State {
    /// The step that the living backend takes next, the receiver's before the transmitter's.
    pub(crate) fn next_op(&mut self) -> Option<Op> {
        let process = self.process.as_mut()?;
        process.receiver.pop_front().or_else(|| process.transmitter.pop_front())
    }

    /// Executes a step of the living backend. `count` is what the kernel has chosen.
    pub(crate) fn execute(&mut self, config: &Config, effect: Effect, count: u32) {
        let ledger = &mut self.ledger;
        match effect {
            Effect::Nothing => {}
            Effect::RingByte { from, to } => ledger.ring[to as usize] = ledger.ring[from as usize],
            Effect::Received(record, value) => receive(ledger, record).received = value,
            Effect::Base(record, value) => receive(ledger, record).base = value,
            Effect::Wanted(record, value) => receive(ledger, record).wanted = value,
            Effect::ClearReceived(record) => receive(ledger, record).msg_len = 0,
            Effect::ReceiveEpoch(epoch) => ledger.receive_epoch = epoch,
            Effect::Receive { record, offset, .. } => self.receive(config, record, offset, count),
            Effect::SlotPosition(slot, value) => ledger.slots[slot].position = value,
            Effect::SlotRequest(slot, name) => ledger.slots[slot].request = Some(name),
            Effect::SlotState(slot, value) => ledger.slots[slot].state = value,
            Effect::Parsed(value) => {
                ledger.parsed = value;
                self.hand_over();
            }
            Effect::Recovered => self.hand_over(),
            Effect::AreaByte(place, byte) => ledger.area[place as usize] = Some(byte),
            Effect::AreaMove { from, to } => ledger.area[to as usize] = ledger.area[from as usize],
            Effect::Sequence(record, value) => transmit(ledger, record).sequence = value,
            Effect::Length(record, value) => transmit(ledger, record).length = value,
            Effect::Sent(record, value) => transmit(ledger, record).sent = value,
            Effect::ClearSent(record) => transmit(ledger, record).msg_len = 0,
            Effect::TransmitEpoch(epoch) => ledger.transmit_epoch = epoch,
            Effect::Send { record, from, length } => self.send(config, record, from, length, count),
        }
    }

    /// Tickets are there to be executed.
    fn hand_over(&mut self) {
        if let Some(process) = &mut self.process {
            process.tickets.append(&mut process.taking);
            process.recovering = false;
        }
    }

    /// The kernel stores bytes and their count; nothing can come between the two for a successor.
    fn receive(&mut self, config: &Config, record: u8, offset: u32, count: u32) {
        for byte in 0..count {
            let place = (offset + byte) % config.ring;
            self.ledger.ring[place as usize] = Some(self.kernel.taken + byte);
        }
        self.kernel.taken += count;
        receive(&mut self.ledger, record).msg_len = count;
        if let Some(process) = &mut self.process {
            process.received += count;
        }
    }

    fn send(&mut self, config: &Config, record: u8, from: u32, length: u32, count: u32) {
        for place in from..from + count {
            let byte = self.ledger.area[place as usize];
            if !self.kernel.accept(config, byte, self.executed) {
                self.broken = Some(invariant::REPLIES);
            }
        }
        if count > 0 {
            transmit(&mut self.ledger, record).msg_len = count;
        }
        if let Some(process) = &mut self.process {
            process.sent(from + count, length, count == 0);
        }
    }
}

fn receive(ledger: &mut crate::state::Ledger, record: u8) -> &mut ReceiveRecord {
    &mut ledger.receive[usize::from(record)]
}

fn transmit(ledger: &mut crate::state::Ledger, record: u8) -> &mut TransmitRecord {
    &mut ledger.transmit[usize::from(record)]
}

impl Kernel {
    /// As strict as the driver: a reply belongs to a request that was sent and waits, its bytes
    /// come in order, and nothing comes between them.
    fn accept(&mut self, config: &Config, byte: Option<ReplyByte>, executed: u32) -> bool {
        let Some((name, place)) = byte else { return false };
        let was_taken = config.needed(name) <= self.taken;
        let was_executed = executed & (1 << name) != 0;
        let is_next = match self.part {
            Some(expected) => expected == (name, place),
            None => place == 0,
        };
        if self.has(name) || !was_taken || !was_executed || !is_next {
            return false;
        }
        self.part = Some((name, place + 1));
        if place + 1 == config.reply_length(name) {
            self.part = None;
            self.answered |= 1 << name;
        }
        true
    }
}
