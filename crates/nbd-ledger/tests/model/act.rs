//! What a backend may begin to do, as sequences of steps in the order of the code.
//!
//! Receiver and transmitter belong to two threads, so both may be in the middle of something.

use std::collections::VecDeque;

use nbd_ledger::CrashPoint;
use nbd_ledger::layout::SlotState;

use crate::fault::{self, Fault};
use crate::invariant;
use crate::state::{Config, Process, State, Ticket};
use crate::step::{Effect, Op};

/// A call into the crate, or the begin of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// `Ledger::open_lane`
    Recover,
    /// `Receiver::receive`
    Receive,
    /// `Receiver::take`
    Take,
    /// Executes the nth ticket, and `Transmitter::stage`
    Stage(usize),
    /// `Transmitter::send`
    Send,
}

impl State {
    /// What may be begun now.
    pub(crate) fn acts(&self, config: &Config) -> Vec<Act> {
        let Some(process) = &self.process else { return vec![Act::Recover] };
        let mut acts = Vec::new();
        if process.receiver.is_empty() {
            let has_space = process.received - self.oldest(config).1 < config.ring;
            if has_space && self.kernel.taken < config.total() {
                acts.push(Act::Receive);
            }
            if self.next_request(config, process.parsed).is_some()
                && self.slot(config, &[]).is_some()
            {
                acts.push(Act::Take);
            }
        }
        if process.transmitter.is_empty() && !process.recovering {
            let end = process.unfinished + process.staged;
            let fits = |ticket: &Ticket| end + config.reply_length(ticket.request) <= config.area;
            let fitting = process.tickets.iter().enumerate().filter(|(_, ticket)| fits(ticket));
            acts.extend(fitting.map(|(index, _)| Act::Stage(index)));
            if end > 0 {
                acts.push(Act::Send);
            }
        }
        acts
    }

    /// Begins something; its steps are still to be executed.
    pub(crate) fn begin(&mut self, config: &Config, act: Act) {
        self.begin_right(config, act);
        if let (Some(fault), Some(process)) = (config.fault, &mut self.process) {
            fault::plant(fault, act, process);
        }
    }

    fn begin_right(&mut self, config: &Config, act: Act) {
        match act {
            Act::Recover => self.recover(config),
            Act::Receive => self.begin_receive(config),
            Act::Take => self.begin_take(config),
            Act::Stage(index) => self.begin_stage(config, index),
            Act::Send => self.begin_send(config),
        }
    }

    pub(crate) fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("only a living process does anything")
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("only a living process does anything")
    }

    fn is_free(&self, config: &Config, slot: usize) -> bool {
        let early = u32::from(config.fault == Some(Fault::FreeWhenCommitted));
        self.ledger.slots[slot].state().is_free((self.process().complete + early).into())
    }

    /// `Receiver::oldest`: how many writes need their payload no more, and the oldest byte needed.
    fn oldest(&self, config: &Config) -> (usize, u32) {
        let process = self.process();
        let needed = |&(slot, position): &(usize, u32)| {
            self.ledger.slots[slot].position == position && !self.is_free(config, slot)
        };
        match process.writes.iter().position(needed) {
            Some(first) => (first, process.writes[first].1),
            None => (process.writes.len(), process.parsed.min(process.received)),
        }
    }

    /// `Receiver::receive`: `rebase`, `commit`, and the system call.
    fn begin_receive(&mut self, config: &Config) {
        let (done, oldest) = self.oldest(config);
        let process = self.process_mut();
        process.writes.drain(..done);
        let mut ops = VecDeque::new();
        let remainder = process.received.saturating_sub(process.parsed);
        let offset = process.parsed.wrapping_sub(process.base) % config.ring;
        let is_cheap = remainder <= config.small_remainder || offset >= config.rewind_after;
        let forgets = config.fault == Some(Fault::PayloadForgotten);
        if !process.writes.is_empty() && !forgets {
            // Payloads stay where they are.
        } else if remainder == 0 {
            process.base = process.received;
        } else if is_cheap && remainder <= offset && offset + remainder <= config.ring {
            let bytes =
                (0..remainder).map(|byte| Effect::RingByte { from: offset + byte, to: byte }.op());
            ops.extend(bytes);
            ops.push_back(Effect::Nothing.then(CrashPoint::RemainderMoved));
            process.base = process.parsed;
        }
        process.receive_epoch ^= 1;
        let record = process.receive_epoch;
        let wanted = (config.ring - (process.received - oldest)).min(config.max_receive);
        let offset = (process.received - process.base) % config.ring;
        ops.extend([
            Effect::Received(record, process.received).then(CrashPoint::ReceiveBegun),
            Effect::Base(record, process.base).op(),
            Effect::Wanted(record, wanted).op(),
            Effect::ClearReceived(record).then(CrashPoint::ReceiveFilled),
            Effect::ReceiveEpoch(record).then(CrashPoint::ReceiveCommitted),
            Effect::Receive { record, offset, wanted }.then(CrashPoint::Received),
        ]);
        process.receiver = ops;
    }

    /// The request that `Receiver::take` finds at a position.
    fn next_request(&self, config: &Config, position: u32) -> Option<u8> {
        let process = self.process();
        let name = config.at(position)?;
        let needed = config.header.max(config.kept(name));
        (position + needed <= process.received).then_some(name)
    }

    /// `Receiver::find_slot`, beside those that are being filled.
    fn slot(&self, config: &Config, filling: &[usize]) -> Option<usize> {
        let all = (0..self.ledger.slots.len()).map(|n| n + self.process().cursor);
        let mut all = all.map(|n| n % self.ledger.slots.len());
        all.find(|slot| !filling.contains(slot) && self.is_free(config, *slot))
    }

    /// `Receiver::take`
    fn begin_take(&mut self, config: &Config) {
        let mut ops = VecDeque::new();
        let mut filled = Vec::new();
        loop {
            let position = self.process().parsed;
            let Some(request) = self.next_request(config, position) else { break };
            let Some(slot) = self.slot(config, &filled) else { break };
            if !self.in_ring(config, position, config.header) {
                self.broken = Some(invariant::UNPARSED);
            }
            ops.extend([
                Effect::SlotPosition(slot, position).then(CrashPoint::SlotBegun),
                Effect::SlotRequest(slot, request).then(CrashPoint::SlotFilled),
                Effect::SlotState(slot, 1).then(CrashPoint::SlotPending),
            ]);
            filled.push(slot);
            let slots = self.ledger.slots.len();
            let process = self.process_mut();
            process.cursor = (slot + 1) % slots;
            if config.kept(request) > 0 {
                process.writes.push_back((slot, position));
            }
            let payload = (position + config.header - process.base) % config.ring;
            process.taking.push(Ticket { slot, request, payload });
            process.parsed = position + config.length(request);
        }
        ops.push_back(Effect::Nothing.then(CrashPoint::TakeBegun));
        ops.push_back(Effect::Parsed(self.process().parsed).then(CrashPoint::Taken));
        self.process_mut().receiver = ops;
    }

    /// Whether the ring holds bytes of the stream where the living process looks for them.
    fn in_ring(&self, config: &Config, position: u32, length: u32) -> bool {
        let base = self.process().base;
        (position..position + length).all(|position| {
            self.ledger.ring[((position - base) % config.ring) as usize] == Some(position)
        })
    }

    /// `recover::take_over`, on what `audit::check_lane` finds.
    fn recover(&mut self, config: &Config) {
        let ledger = &self.ledger;
        let sequence = ledger.transmitting().sequence;
        let (sent, length) = (ledger.sent(), ledger.transmitting().length);
        let slots = || ledger.slots.iter().enumerate();
        let uncommitted = slots().filter(|(_, slot)| {
            slot.state() == SlotState::Pending && slot.position >= ledger.parsed
        });
        let mut ops: VecDeque<Op> = uncommitted
            .map(|(index, _)| Effect::SlotState(index, 0).then(CrashPoint::SlotVacated))
            .collect();
        let mut waiting: Vec<_> = slots().filter(|(_, slot)| ledger.waits(slot)).collect();
        if config.fault == Some(Fault::StagedForgotten) {
            waiting.retain(|(_, slot)| slot.state() == SlotState::Pending);
        }
        waiting.sort_by_key(|(_, slot)| slot.position);
        let base = ledger.receiving().base;
        let mut process = Process {
            received: ledger.received(),
            base,
            parsed: ledger.parsed,
            receive_epoch: ledger.receive_epoch,
            writes: VecDeque::new(),
            cursor: 0,
            taking: Vec::new(),
            receiver: VecDeque::new(),
            recovering: true,
            transmit_epoch: ledger.transmit_epoch,
            sequence,
            unfinished: if sent < length { length } else { 0 },
            staged: 0,
            transmitter: VecDeque::new(),
            complete: if sent < length { sequence - 1 } else { sequence },
            tickets: Vec::new(),
        };
        for (index, slot) in waiting {
            ops.push_back(Effect::SlotState(index, 1).then(CrashPoint::Restored));
            let Some(request) = slot.request else { continue };
            if config.kept(request) > 0 {
                process.writes.push_back((index, slot.position));
            }
            let payload = (slot.position + config.header).wrapping_sub(base) % config.ring;
            process.taking.push(Ticket { slot: index, request, payload });
        }
        ops.push_back(Effect::Recovered.op());
        process.receiver = ops;
        self.process = Some(process);
    }
}
