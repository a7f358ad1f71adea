//! The receive side of a lane: bytes become requests, requests get slots.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbd_proto::{CommandFlags, CommandType, Request};
use thiserror::Error;

use crate::hook::{Point, crash_point};
use crate::layout::{SLOTS, SlotIndex, SlotState};
use crate::ledger::Lane;
use crate::message;

/// Bytes of a request header: the driver's `sizeof(struct nbd_request)`.
pub(crate) const HEADER: u64 = Request::LEN as u64;
/// Most bytes to take at once. More would spoil the processor's caches and gain nothing.
const RECEIVE_MOST: u64 = 512 << 10;
/// A rest of this size is always moved to the ring's beginning when nothing else lives in it …
const SMALL_REST: u64 = 4096;
/// … and a larger one when the ring has run this far, so that it stays in the caches.
const FAR: u64 = 1 << 20;

/// What came of [`Receiver::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Some bytes; call [`Receiver::take`].
    Bytes,
    /// The kernel has closed its end.
    Closed,
}

/// The kernel sent something that is no request: the lane cannot go on.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no request at stream position {position}: {found:#010x} is not the request magic")]
pub struct StreamError {
    /// Stream position of the bad header.
    pub position: u64,
    /// What stands there instead of the magic.
    pub found: u32,
}

/// Why [`Receiver::take`] stopped taking requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Everything complete was taken: receive more.
    Empty,
    /// There is a request, and no free slot for it: answer some first.
    Starved,
    /// The kernel asked to disconnect; nothing follows.
    Disconnect,
}

/// A request in a slot of the ledger. It is answered by giving the ticket to
/// [`Transmitter::stage`](crate::Transmitter::stage), so it cannot be answered twice; a ticket
/// that is dropped leaves the request to a successor.
#[derive(Debug)]
pub struct Ticket {
    pub(crate) lane: Arc<Lane>,
    pub(crate) slot: SlotIndex,
    request: Request,
    payload: Option<u64>,
}

impl Ticket {
    pub(crate) fn new(lane: &Arc<Lane>, slot: SlotIndex, request: Request, ring: u64) -> Self {
        let payload = request.payload_len();
        let kept = payload != 0 && payload <= lane.ledger().layout().max_payload;
        Self { lane: Arc::clone(lane), slot, request, payload: kept.then_some(ring) }
    }

    /// The request.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The lane it came from.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// A write's data; empty for all else, and for a write too long to keep.
    pub fn payload(&self) -> &[u8] {
        match self.payload {
            Some(offset) => self.lane.ring.bytes(offset, u64::from(self.request.payload_len())),
            None => &[],
        }
    }

    /// How many backends began to execute this request.
    pub fn attempts(&self) -> u32 {
        self.lane.slot(self.slot).attempts.load(Ordering::Relaxed)
    }

    /// How many backends crashed while they executed this request.
    pub fn crashes(&self) -> u32 {
        self.lane.slot(self.slot).crashes.load(Ordering::Relaxed)
    }

    /// Called once by a successor, before it executes anything: the request waits for its
    /// execution again. If the predecessor `crashed`, and was executing it then, that counts.
    pub fn outlive(&self, crashed: bool) {
        let slot = self.lane.slot(self.slot);
        if slot.started_at.load(Ordering::Relaxed) == 0 {
            return;
        }
        // In this order a successor that dies in between counts too few crashes, never too many.
        slot.started_at.store(0, Ordering::Release);
        crash_point(Point::Outlived);
        if crashed {
            let crashes = self.crashes().saturating_add(1);
            slot.crashes.store(crashes, Ordering::Release);
        }
    }

    /// Notes that execution begins at `now` (`CLOCK_MONOTONIC` nanoseconds). One that is begun,
    /// found to be slow, and begun again in another thread is one attempt.
    pub fn begin(&self, now: u64) {
        let slot = self.lane.slot(self.slot);
        let before = slot.started_at.load(Ordering::Relaxed);
        slot.started_at.store(now, Ordering::Relaxed);
        if before != 0 {
            return;
        }
        let attempts = slot.attempts.load(Ordering::Relaxed).saturating_add(1);
        slot.attempts.store(attempts, Ordering::Release);
    }
}

/// The receiving end of a lane: one thread's.
#[derive(Debug)]
pub struct Receiver {
    pub(crate) lane: Arc<Lane>,
    /// Stream position behind the last byte received.
    pub(crate) received: u64,
    /// Stream position at the ring's offset 0.
    pub(crate) base: u64,
    /// Stream position behind the last request taken; beyond `received` while skipping.
    pub(crate) parsed: u64,
    pub(crate) epoch: u64,
    /// Writes whose payload may still be needed, oldest first.
    pub(crate) writes: VecDeque<(SlotIndex, u64)>,
    pub(crate) cursor: u16,
}

impl Receiver {
    /// The lane.
    pub fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    fn offset_of(&self, position: u64) -> u64 {
        let (offset, ring) = (position - self.base, self.lane.ledger().layout().ring);
        // Dividing is slow, and nearly always there is nothing to divide.
        if offset < ring { offset } else { offset % ring }
    }

    /// Stream position of the oldest byte that is still needed.
    fn oldest(&mut self) -> u64 {
        while let Some(&(slot, position)) = self.writes.front() {
            let same = self.lane.slot(slot).position.load(Ordering::Relaxed) == position;
            if same && !self.lane.is_free(slot) {
                return position;
            }
            self.writes.pop_front();
        }
        self.parsed.min(self.received)
    }

    /// Whether [`Self::receive`] has space to receive into.
    pub fn has_space(&mut self) -> bool {
        self.received - self.oldest() < self.lane.ledger().layout().ring
    }

    /// Whether there is a slot for one more request.
    pub fn has_slot(&mut self) -> bool {
        self.find_slot().is_some()
    }

    /// Receives what has come, waiting for it if the socket blocks. There must be space.
    pub fn receive(&mut self) -> io::Result<Arrival> {
        let oldest = self.oldest();
        self.rebase();
        let lane = Arc::clone(&self.lane);
        let space = lane.ledger().layout().ring - (self.received - oldest);
        let wanted = space.min(RECEIVE_MOST);
        assert!(wanted > 0, "receiving into a full ring");
        let window = lane.ring.window(self.offset_of(self.received), wanted);
        let record = self.commit(wanted);
        let count = message::receive(lane.socket(), &record.message, window)?;
        crash_point(Point::Received);
        self.received += u64::from(count);
        Ok(if count == 0 { Arrival::Closed } else { Arrival::Bytes })
    }

    /// Lets the ring begin anew where nothing lives in it, or only a short rest.
    fn rebase(&mut self) {
        if !self.writes.is_empty() {
            return;
        }
        if self.parsed >= self.received {
            self.base = self.received;
            return;
        }
        let rest = self.received - self.parsed;
        let offset = self.offset_of(self.parsed);
        let worth_it = rest <= SMALL_REST || offset >= FAR;
        if worth_it && rest <= offset && offset + rest <= self.lane.ledger().layout().ring {
            // The rest stays valid where it was until the next commit names its new place.
            self.lane.ring.copy_to_start(offset, rest);
            crash_point(Point::Moved);
            self.base = self.parsed;
        }
    }

    /// Makes the other record of the pair the valid one, with all earlier bytes folded in.
    fn commit(&mut self, wanted: u64) -> &crate::layout::ReceiveRecord {
        self.epoch += 1;
        let control = self.lane.control();
        let record = &control.receive[(self.epoch & 1) as usize];
        record.received.store(self.received, Ordering::Relaxed);
        crash_point(Point::ReceiveBegun);
        record.base.store(self.base, Ordering::Relaxed);
        record.wanted.store(wanted, Ordering::Relaxed);
        message::reset(&record.message);
        crash_point(Point::ReceiveFilled);
        control.receive_epoch.store(self.epoch, Ordering::Release);
        crash_point(Point::ReceiveCommitted);
        record
    }

    /// Takes every complete request that was received into a slot. `now` is `CLOCK_MONOTONIC`
    /// in nanoseconds. Also when it fails, `tickets` has what stood before the bad header.
    pub fn take(&mut self, now: u64, tickets: &mut Vec<Ticket>) -> Result<Rest, StreamError> {
        let before = self.parsed;
        let rest = loop {
            if self.parsed + HEADER > self.received {
                break Ok(Rest::Empty);
            }
            let request = match self.peek_request() {
                Ok(request) => request,
                // What was taken before it must be committed like any other: it will be answered.
                Err(error) => break Err(error),
            };
            if request.command == CommandType::DISC {
                // Left in the stream, so that a successor sees it too.
                break Ok(Rest::Disconnect);
            }
            let payload = u64::from(request.payload_len());
            let kept = payload <= u64::from(self.lane.ledger().layout().max_payload);
            let end = self.parsed + HEADER + payload;
            if kept && end > self.received {
                break Ok(Rest::Empty);
            }
            let Some(slot) = self.find_slot() else {
                break Ok(Rest::Starved);
            };
            self.fill(slot, &request, now);
            if kept && payload != 0 {
                self.writes.push_back((slot, self.parsed));
            }
            let data = self.offset_of(self.parsed + HEADER);
            tickets.push(Ticket::new(&self.lane, slot, request, data));
            self.parsed = end;
        };
        if self.parsed != before {
            let control = self.lane.control();
            control.last_received_at.store(now, Ordering::Relaxed);
            crash_point(Point::TakeBegun);
            control.parsed.store(self.parsed, Ordering::Release);
            crash_point(Point::Taken);
        }
        rest
    }

    fn peek_request(&self) -> Result<Request, StreamError> {
        let bytes = self.lane.ring.bytes(self.offset_of(self.parsed), HEADER);
        let header = bytes.first_chunk().expect("a header's length was asked for");
        Request::decode(header)
            .map_err(|wrong| StreamError { position: self.parsed, found: wrong.found })
    }

    fn find_slot(&mut self) -> Option<SlotIndex> {
        for _ in 0..SLOTS {
            let slot = SlotIndex(self.cursor);
            if self.lane.is_free(slot) {
                return Some(slot);
            }
            self.cursor = (self.cursor + 1) % SLOTS as u16;
        }
        None
    }

    /// Fills a slot. It counts only once `parsed` has moved past its position.
    fn fill(&mut self, index: SlotIndex, request: &Request, now: u64) {
        let slot = self.lane.slot(index);
        slot.position.store(self.parsed, Ordering::Relaxed);
        crash_point(Point::SlotBegun);
        slot.cookie.store(request.cookie, Ordering::Relaxed);
        slot.offset.store(request.offset, Ordering::Relaxed);
        slot.length.store(request.length, Ordering::Relaxed);
        slot.kind.store(encode_kind(request), Ordering::Relaxed);
        slot.received_at.store(now, Ordering::Relaxed);
        slot.started_at.store(0, Ordering::Relaxed);
        slot.attempts.store(0, Ordering::Relaxed);
        slot.crashes.store(0, Ordering::Relaxed);
        crash_point(Point::SlotFilled);
        slot.set_state(SlotState::Pending);
        crash_point(Point::SlotPending);
        self.cursor = (self.cursor + 1) % SLOTS as u16;
    }
}

pub(crate) fn encode_kind(request: &Request) -> u32 {
    u32::from(request.flags.bits()) << 16 | u32::from(request.command.0)
}

/// Command flags and command of a slot's or a record's word.
pub(crate) fn decode_kind(kind: u32) -> (CommandFlags, CommandType) {
    (CommandFlags::from_bits((kind >> 16) as u16), CommandType(kind as u16))
}

/// The request that a slot holds.
pub(crate) fn request_of(slot: &crate::layout::Slot) -> Request {
    let (flags, command) = decode_kind(slot.kind.load(Ordering::Relaxed));
    Request {
        flags,
        command,
        cookie: slot.cookie.load(Ordering::Relaxed),
        offset: slot.offset.load(Ordering::Relaxed),
        length: slot.length.load(Ordering::Relaxed),
    }
}

#[cfg(test)]
mod tests;
