//! The flight recorder: the latest requests of a lane that were executed, with times and results,
//! for whoever looks into what a backend did before it died.
//!
//! Nothing is ever replayed from it, so it is not audited: the reader takes any bytes for what they
//! say. A request that was executed and whose answer was not committed is executed again by the
//! successor, and recorded again; that is the truth about it.

use std::sync::atomic::Ordering;

use nbd_proto::{NbdError, Request};

use crate::inspect::Inspector;
use crate::layout::{RECORDS, Record};
use crate::receive::{Ticket, decode_kind, encode_kind};
use crate::transmit::Transmitter;

/// A request that was executed, as the recorder tells it. Times are `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its number on this lane, from 0 since attach.
    pub number: u64,
    /// The request.
    pub request: Request,
    /// When a backend took it first.
    pub received_at: u64,
    /// When its last execution was begun; 0 if it was answered without one.
    pub started_at: u64,
    /// When that was over.
    pub finished_at: u64,
    /// How often its execution was begun, by all backends together.
    pub attempts: u32,
    /// What it was answered with.
    pub error: NbdError,
    /// Which backend since attach executed it, the first one being 1.
    pub generation: u64,
}

impl Transmitter {
    /// Records that a request was executed at `now`, before it is staged. One store commits the
    /// record, so whoever reads along or comes later sees all of it or nothing. How long it took
    /// counts once the request is answered.
    pub fn record(&mut self, ticket: &Ticket, error: NbdError, now: u64) {
        let relaxed = Ordering::Relaxed;
        let request = ticket.request();
        let slot = ticket.lane.slot(ticket.slot);
        let header = ticket.lane.ledger().header();
        let record = self.lane.record(self.recorded);
        record.cookie.store(request.cookie, relaxed);
        record.offset.store(request.offset, relaxed);
        record.length.store(request.length, relaxed);
        record.kind.store(encode_kind(request), relaxed);
        let received_at = slot.received_at.load(relaxed);
        record.received_at.store(received_at, relaxed);
        record.started_at.store(slot.started_at.load(relaxed), relaxed);
        record.finished_at.store(now, relaxed);
        record.attempts.store(slot.attempts.load(relaxed), relaxed);
        record.error.store(error.0, relaxed);
        record.generation.store(header.generation.load(relaxed), relaxed);
        self.latencies.add(request.command, now.saturating_sub(received_at));
        self.recorded = self.recorded.wrapping_add(1);
        self.lane.control().recorded.store(self.recorded, Ordering::Release);
    }

    /// How many requests were recorded since attach.
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// The requests that were recorded from number `from` on, as far as they are still there.
    pub fn recorded_from(&self, from: u64) -> impl Iterator<Item = Recorded> {
        let oldest = self.recorded.saturating_sub(RECORDS.into());
        (from.max(oldest)..self.recorded).map(|number| read(self.lane.record(number), number))
    }
}

impl Inspector {
    /// The requests of a lane from number `from` on, as far as they are still there, at most
    /// `most`; and the number to go on with.
    pub fn recorded(&self, lane: u32, from: u64, most: usize) -> (Vec<Recorded>, u64) {
        let word = &self.map.lane(lane).recorded;
        let end = word.load(Ordering::Acquire);
        let start = from.max(end.saturating_sub(RECORDS.into()));
        let end = end.min(start.saturating_add(most as u64));
        let mut found: Vec<_> = (start..end).map(|number| self.read(lane, number)).collect();
        // What was overwritten while it was read was not read. The one that follows the last may
        // be half filled in by now, and lies where the oldest one was.
        let now = word.load(Ordering::Acquire);
        let oldest = now.saturating_add(1).saturating_sub(RECORDS.into());
        found.retain(|recorded| recorded.number >= oldest);
        (found, end.max(start))
    }

    fn read(&self, lane: u32, number: u64) -> Recorded {
        let recorded = read(self.map.record(lane, number), number);
        // Before the caller looks again how far the writer has come.
        std::sync::atomic::fence(Ordering::Acquire);
        recorded
    }
}

fn read(record: &Record, number: u64) -> Recorded {
    let relaxed = Ordering::Relaxed;
    let (flags, command) = decode_kind(record.kind.load(relaxed));
    Recorded {
        number,
        request: Request {
            flags,
            command,
            cookie: record.cookie.load(relaxed),
            offset: record.offset.load(relaxed),
            length: record.length.load(relaxed),
        },
        received_at: record.received_at.load(relaxed),
        started_at: record.started_at.load(relaxed),
        finished_at: record.finished_at.load(relaxed),
        attempts: record.attempts.load(relaxed),
        error: NbdError(record.error.load(relaxed)),
        generation: record.generation.load(relaxed),
    }
}

#[cfg(test)]
mod tests;
