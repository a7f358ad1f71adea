//! The receive side of a lane: bytes become requests, requests get slots.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbd_proto::{CommandType, Request};
use thiserror::Error;

use crate::crash_points::{CrashPoint, crash_point};
use crate::layout::{SLOTS, SlotIndex, SlotState};
use crate::ledger::Lane;
use crate::message;
use crate::request::{REQUEST_BYTES, encode_kind};

/// Most bytes of one receive: more evict the processor's caches and gain nothing.
const MAX_RECEIVE_BYTES: u64 = 512 << 10;
/// A remainder (a part of a request) of at most this size always moves to the ring's beginning when
/// no other byte of the ring is needed …
const SMALL_REMAINDER_BYTES: u64 = 4096;
/// … and a larger one only once the ring was filled this far, so that the ring stays in the caches.
const REWIND_AFTER_BYTES: u64 = 1 << 20;

/// What [`Receiver::receive`] received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvOutcome {
    /// Some bytes; call [`Receiver::take`].
    Bytes,
    /// The kernel has closed its end.
    Closed,
}

/// The kernel sent bytes that are no request: the lane cannot continue.
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
pub enum TakeOutcome {
    /// Every complete request was taken: receive more.
    AllTaken,
    /// There is a request, and no free slot for it: answer some first.
    NoFreeSlot,
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

    /// Makes the request wait for its execution again, and counts a crash if the predecessor
    /// `crashed` while it executed the request. A successor calls it once for each ticket of its
    /// [`Recovery`](crate::Recovery), before it executes any.
    pub fn requeue(&self, crashed: bool) {
        let slot = self.lane.slot(self.slot);
        if slot.started_at.load(Ordering::Relaxed) == 0 {
            return;
        }
        // In this order, a successor that dies between the two stores counts one crash too few. The
        // other order would count it again, and a good request would be taken for poison.
        slot.started_at.store(0, Ordering::Release);
        crash_point(CrashPoint::Requeued);
        if crashed {
            let crashes = self.crashes().saturating_add(1);
            slot.crashes.store(crashes, Ordering::Release);
        }
    }

    /// Notes that execution begins at `now` (`CLOCK_MONOTONIC` nanoseconds). If the same backend
    /// begins it again, in another thread because it is slow, that is the same attempt.
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

/// The receiving end of a lane, owned by one thread.
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
    /// Index of the slot to try first for the next request.
    pub(crate) next_slot: u16,
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
    fn oldest_needed(&mut self) -> u64 {
        while let Some(&(slot, position)) = self.writes.front() {
            // A slot that was answered and refilled holds another request, at another position.
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
        self.received - self.oldest_needed() < self.lane.ledger().layout().ring
    }

    /// Whether there is a slot for one more request.
    pub fn has_slot(&mut self) -> bool {
        self.find_slot().is_some()
    }

    /// Receives what has come; waits for it if the socket blocks.
    ///
    /// # Errors
    ///
    /// The error of `recvmmsg(2)`, `WouldBlock` and `Interrupted` among them. The call may be
    /// repeated: nothing is lost.
    ///
    /// # Panics
    ///
    /// If there is no space ([`Self::has_space`]).
    pub fn receive(&mut self) -> io::Result<RecvOutcome> {
        let oldest = self.oldest_needed();
        self.rebase();
        let lane = Arc::clone(&self.lane);
        let space = lane.ledger().layout().ring - (self.received - oldest);
        let wanted = space.min(MAX_RECEIVE_BYTES);
        // An empty iovec would return 0, which means that the kernel has closed.
        assert!(wanted > 0, "receiving into a full ring");
        let window = lane.ring.window(self.offset_of(self.received), wanted);
        let record = self.commit(wanted);
        let count = message::receive(lane.socket(), &record.message, window)?;
        crash_point(CrashPoint::Received);
        self.received += u64::from(count);
        Ok(if count == 0 { RecvOutcome::Closed } else { RecvOutcome::Bytes })
    }

    /// Starts the ring again at its beginning if no byte in it is needed, or only a remainder that
    /// is cheap to move.
    fn rebase(&mut self) {
        if !self.writes.is_empty() {
            return;
        }
        if self.parsed >= self.received {
            self.base = self.received;
            return;
        }
        let remainder = self.received - self.parsed;
        let offset = self.offset_of(self.parsed);
        let is_cheap = remainder <= SMALL_REMAINDER_BYTES || offset >= REWIND_AFTER_BYTES;
        let ring = self.lane.ledger().layout().ring;
        // The copy must not overlap its source: after a death in the middle, a successor still reads
        // the remainder at its old place, until the next commit names the new one.
        if is_cheap && remainder <= offset && offset + remainder <= ring {
            self.lane.ring.copy_to_start(offset, remainder);
            crash_point(CrashPoint::RemainderMoved);
            self.base = self.parsed;
        }
    }

    /// Fills the scratch record of the pair, with all earlier bytes folded in, and makes it the valid
    /// one.
    fn commit(&mut self, wanted: u64) -> &crate::layout::ReceiveRecord {
        self.epoch += 1;
        let control = self.lane.control();
        let record = &control.receive[(self.epoch & 1) as usize];
        record.received.store(self.received, Ordering::Relaxed);
        crash_point(CrashPoint::ReceiveBegun);
        record.base.store(self.base, Ordering::Relaxed);
        record.wanted.store(wanted, Ordering::Relaxed);
        message::reset(&record.message);
        crash_point(CrashPoint::ReceiveFilled);
        // This store commits; all stores to the record must come before it.
        control.receive_epoch.store(self.epoch, Ordering::Release);
        crash_point(CrashPoint::ReceiveCommitted);
        record
    }

    /// Takes every complete request that was received into a slot and appends its ticket. `now` is
    /// `CLOCK_MONOTONIC` in nanoseconds.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if bytes follow that are no request. The requests before them are taken, and
    /// `tickets` has them.
    pub fn take(
        &mut self,
        now: u64,
        tickets: &mut Vec<Ticket>,
    ) -> Result<TakeOutcome, StreamError> {
        let before = self.parsed;
        let outcome = loop {
            if self.parsed + REQUEST_BYTES > self.received {
                break Ok(TakeOutcome::AllTaken);
            }
            let request = match self.peek_request() {
                Ok(request) => request,
                // Requests taken before it are committed below, because they will be answered.
                Err(error) => break Err(error),
            };
            if request.command == CommandType::DISC {
                // It stays in the stream, so that a successor sees it too.
                break Ok(TakeOutcome::Disconnect);
            }
            let payload = u64::from(request.payload_len());
            let kept = payload <= u64::from(self.lane.ledger().layout().max_payload);
            let end = self.parsed + REQUEST_BYTES + payload;
            if kept && end > self.received {
                break Ok(TakeOutcome::AllTaken);
            }
            let Some(slot) = self.find_slot() else {
                break Ok(TakeOutcome::NoFreeSlot);
            };
            self.fill(slot, &request, now);
            if kept && payload != 0 {
                self.writes.push_back((slot, self.parsed));
            }
            let data = self.offset_of(self.parsed + REQUEST_BYTES);
            tickets.push(Ticket::new(&self.lane, slot, request, data));
            self.parsed = end;
        };
        if self.parsed != before {
            let control = self.lane.control();
            control.last_received_at.store(now, Ordering::Relaxed);
            crash_point(CrashPoint::TakeBegun);
            // This store commits all slots that were filled above.
            control.parsed.store(self.parsed, Ordering::Release);
            crash_point(CrashPoint::Taken);
        }
        outcome
    }

    fn peek_request(&self) -> Result<Request, StreamError> {
        let bytes = self.lane.ring.bytes(self.offset_of(self.parsed), REQUEST_BYTES);
        let header = bytes.first_chunk().expect("a header's length was asked for");
        Request::decode(header)
            .map_err(|wrong| StreamError { position: self.parsed, found: wrong.found })
    }

    fn find_slot(&mut self) -> Option<SlotIndex> {
        for _ in 0..SLOTS {
            let slot = SlotIndex(self.next_slot);
            if self.lane.is_free(slot) {
                return Some(slot);
            }
            self.next_slot = (self.next_slot + 1) % SLOTS as u16;
        }
        None
    }

    /// Fills a slot. It counts only once `parsed` has moved past its position.
    fn fill(&mut self, index: SlotIndex, request: &Request, now: u64) {
        let slot = self.lane.slot(index);
        // First, while the state still says that the slot is free: `Pending` at an old position,
        // below `parsed`, would bring an answered request back to life.
        slot.position.store(self.parsed, Ordering::Relaxed);
        crash_point(CrashPoint::SlotBegun);
        slot.cookie.store(request.cookie, Ordering::Relaxed);
        slot.offset.store(request.offset, Ordering::Relaxed);
        slot.length.store(request.length, Ordering::Relaxed);
        slot.kind.store(encode_kind(request), Ordering::Relaxed);
        slot.received_at.store(now, Ordering::Relaxed);
        slot.started_at.store(0, Ordering::Relaxed);
        slot.attempts.store(0, Ordering::Relaxed);
        slot.crashes.store(0, Ordering::Relaxed);
        crash_point(CrashPoint::SlotFilled);
        slot.set_state(SlotState::Pending);
        crash_point(CrashPoint::SlotPending);
        self.next_slot = (self.next_slot + 1) % SLOTS as u16;
    }
}

#[cfg(test)]
mod tests;
