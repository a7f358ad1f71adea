//! The flight recorder: the latest requests that a lane's backends executed, with times and results,
//! to show what a backend did before it died.
//!
//! No backend replays anything from it, so it is not audited: readers accept any bytes. If a backend
//! executes a request and dies before it commits the answer, its successor executes and records that
//! request again: both executions took place.

use std::sync::atomic::{Ordering, fence};

use nbd_proto::{NbdError, Request};

use crate::inspect::Inspector;
use crate::layout::{FLIGHT_RECORDS, FlightRecord};
use crate::map::LaneWords;
use crate::receive::Ticket;
use crate::request::{decode_kind, encode_kind};
use crate::transmit::Transmitter;

/// An execution of a request, as the recorder tells it. Times are `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
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

/// Writes the record of execution `number`, where the oldest one was, and commits it.
pub(crate) fn commit(lane: &LaneWords, number: u64, write: impl FnOnce(&FlightRecord)) {
    // A reader that sees one of these stores must also see that all records before were committed:
    // by that it knows which record is being overwritten. A store with Release orders what is before
    // it, not what follows. Pairs with the fence of `Inspector::read`; costs nothing on x86.
    fence(Ordering::Release);
    write(lane.flight_record(number));
    lane.control().recorded.store(number.wrapping_add(1), Ordering::Release);
}

impl Transmitter {
    /// Records that a request was executed at `now`, before it is staged. One store commits the
    /// record, so readers see all of it or nothing. How long the request took is counted once it is
    /// answered.
    pub fn record_execution(&mut self, ticket: &Ticket, error: NbdError, now: u64) {
        let relaxed = Ordering::Relaxed;
        let request = ticket.request();
        let slot = ticket.lane.slot(ticket.slot);
        let header = ticket.lane.ledger().header();
        let received_at = slot.received_at.load(relaxed);
        commit(&self.lane.words, self.recorded, |record| {
            record.cookie.store(request.cookie, relaxed);
            record.offset.store(request.offset, relaxed);
            record.length.store(request.length, relaxed);
            record.kind.store(encode_kind(request), relaxed);
            record.received_at.store(received_at, relaxed);
            record.started_at.store(slot.started_at.load(relaxed), relaxed);
            record.finished_at.store(now, relaxed);
            record.attempts.store(slot.attempts.load(relaxed), relaxed);
            record.error.store(error.0, relaxed);
            record.generation.store(header.generation.load(relaxed), relaxed);
        });
        self.latencies.add(request.command, now.saturating_sub(received_at));
        self.recorded = self.recorded.wrapping_add(1);
    }

    /// How many executions were recorded since attach.
    pub fn executions_recorded(&self) -> u64 {
        self.recorded
    }

    /// The executions from number `from` on, as far as the recorder still has them.
    pub fn executions_from(&self, from: u64) -> impl Iterator<Item = Execution> {
        let oldest = self.recorded.saturating_sub(FLIGHT_RECORDS.into());
        (from.max(oldest)..self.recorded)
            .map(|number| read(self.lane.flight_record(number), number))
    }
}

impl Inspector {
    /// At most `limit` executions on a lane from number `from` on, as far as the recorder still has
    /// them, and the number to continue with.
    pub fn executions(&self, lane: u32, from: u64, limit: usize) -> (Vec<Execution>, u64) {
        let word = &self.map.lane(lane).recorded;
        let end = word.load(Ordering::Acquire);
        let start = from.max(end.saturating_sub(FLIGHT_RECORDS.into()));
        let end = end.min(start.saturating_add(limit as u64));
        let mut found: Vec<_> = (start..end).map(|number| self.read(lane, number)).collect();
        // Drops what the writer overwrote meanwhile. It may be filling in record `now`, which lies
        // where the oldest one was, so one record more than the commits tell is lost.
        let now = word.load(Ordering::Acquire);
        let oldest = now.saturating_add(1).saturating_sub(FLIGHT_RECORDS.into());
        found.retain(|recorded| recorded.number >= oldest);
        (found, end.max(start))
    }

    fn read(&self, lane: u32, number: u64) -> Execution {
        let recorded = read(self.map.flight_record(lane, number), number);
        // The loads above must come before the caller's second load of the writer's position.
        fence(Ordering::Acquire);
        recorded
    }
}

fn read(record: &FlightRecord, number: u64) -> Execution {
    let relaxed = Ordering::Relaxed;
    let (flags, command) = decode_kind(record.kind.load(relaxed));
    Execution {
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
