//! The transmitter's side of [`crate::act`].

use nbd_ledger::CrashPoint;
use nbd_ledger::layout::SlotState;

use crate::fault::Fault;
use crate::invariant;
use crate::state::{Config, Process, State};
use crate::step::Effect;

impl State {
    /// Execution reads the payload; then `Transmitter::stage`.
    pub(crate) fn begin_stage(&mut self, config: &Config, index: usize) {
        let ticket = self.process_mut().tickets.remove(index);
        let start = config.start(ticket.request) + config.header;
        let kept = config.kept(ticket.request).saturating_sub(config.header);
        let intact = (0..kept).all(|byte| {
            let place = (ticket.payload + byte) % config.ring;
            self.ledger.ring[place as usize] == Some(start + byte)
        });
        if !intact {
            self.broken = Some(invariant::PAYLOAD);
        }
        self.executed |= 1 << ticket.request;
        let process = self.process_mut();
        let place = process.unfinished + process.staged;
        let length = config.reply_length(ticket.request);
        // Data first, then the header before it.
        let bytes = (config.reply..length).chain(0..config.reply);
        process.transmitter =
            bytes.map(|byte| Effect::AreaByte(place + byte, (ticket.request, byte)).op()).collect();
        let staged = SlotState::Staged(u64::from(process.sequence) + 1).encode() as u32;
        process.transmitter.push_back(Effect::Nothing.then(CrashPoint::ReplyWritten));
        process
            .transmitter
            .push_back(Effect::SlotState(ticket.slot, staged).then(CrashPoint::Staged));
        process.staged += length;
    }

    /// `Transmitter::send`, which first goes on with what a call before it has not sent.
    pub(crate) fn begin_send(&mut self, config: &Config) {
        let forgets = config.fault == Some(Fault::SentForgotten);
        let sent = if forgets { self.ledger.transmitting().sent } else { self.ledger.sent() };
        let process = self.process_mut();
        if process.unfinished > 0 {
            return process.pump(sent, process.unfinished);
        }
        process.sequence += 1;
        process.unfinished = std::mem::take(&mut process.staged);
        process.pump(0, process.unfinished);
    }
}

impl Process {
    /// `Transmitter::send_from`, one turn of its loop.
    fn pump(&mut self, sent: u32, length: u32) {
        self.transmit_epoch ^= 1;
        let record = self.transmit_epoch;
        self.transmitter.extend([
            Effect::Sequence(record, self.sequence).then(CrashPoint::SendBegun),
            Effect::Length(record, length).op(),
            Effect::Sent(record, sent).op(),
            Effect::ClearSent(record).then(CrashPoint::SendFilled),
            Effect::TransmitEpoch(record).then(CrashPoint::SendCommitted),
            Effect::Send { record, from: sent, length }.then(CrashPoint::Sent),
        ]);
    }

    /// After `sendmmsg`.
    pub(crate) fn sent(&mut self, sent: u32, length: u32, failed: bool) {
        if failed {
            return;
        }
        if sent < length {
            return self.pump(sent, length);
        }
        self.unfinished = 0;
        self.complete = self.sequence;
        if self.staged > 0 {
            for byte in 0..self.staged {
                let (from, to) = (length + byte, byte);
                self.transmitter.push_back(Effect::AreaMove { from, to }.op());
            }
            self.sequence += 1;
            self.unfinished = std::mem::take(&mut self.staged);
            self.pump(0, self.unfinished);
        }
    }
}
