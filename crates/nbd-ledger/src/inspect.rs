//! Reading along: what the holder shows of a device while its backend runs, stops or is gone.
//!
//! The backend changes the memory meanwhile, or has filled it with garbage. So an inspector checks
//! every word that it uses, and promises only that each request was as shown at some moment.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use nbd_proto::{CommandType, Request};

use crate::audit;
use crate::layout::{Header, Layout, SLOTS, SlotIndex, SlotState, TransmitRecord};
use crate::ledger::LedgerError;
use crate::map::Map;
use crate::request;

/// How many of the bytes that a backend has received and not taken are read.
const MAX_UNREAD_BYTES: u64 = 1 << 20;

/// A ledger mapped for reading only. Methods that name a lane panic if the layout has no such lane.
#[derive(Debug)]
pub struct Inspector {
    pub(crate) map: Map,
    pub(crate) file: std::fs::File,
}

/// A request in flight, as the ledger tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The request.
    pub request: Request,
    /// Stream position of its first byte.
    pub position: u64,
    /// `CLOCK_MONOTONIC` nanoseconds at which the backend took it.
    pub received_at: u64,
    /// The same for the latest begin of its execution, 0 if it waits for one.
    pub started_at: u64,
    /// How often its execution was begun.
    pub attempts: u32,
    /// How many backends crashed while they executed it.
    pub crashes: u32,
}

/// A request that no backend has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The request.
    pub request: Request,
    /// Stream position of its first byte.
    pub position: u64,
}

/// A lane's totals, copied; see [`layout::Totals`](crate::layout::Totals).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named and documented as the words they are copied from")]
pub struct TotalsSnapshot {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub trims: u64,
    pub others: u64,
    pub errors: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

impl Inspector {
    /// Maps a ledger for reading, after checking that it has the expected shape.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Corrupt`] if `file` is not a sealed memfd of `layout`'s size or its header
    /// does not describe `layout`; [`LedgerError::System`] if it cannot be mapped.
    pub fn open(file: OwnedFd, layout: &Layout) -> Result<Self, LedgerError> {
        audit::check_file(file.as_fd(), layout)?;
        let map = Map::new(file.as_fd(), *layout, false)
            .map_err(|errno| LedgerError::System { action: "map", source: errno.into() })?;
        audit::check_header(map.header(), layout)?;
        Ok(Self { map, file: file.into() })
    }

    /// The shared header, for loads only: the mapping is read-only, so a store faults.
    pub fn header(&self) -> &Header {
        self.map.header()
    }

    /// Whether the latest backend has left the device, and its process lives on.
    pub fn has_backend_left(&self) -> bool {
        let header = self.header();
        // Acquire, as with every word that a backend commits something by: what it did before is done.
        let left = header.left_generation.load(Ordering::Acquire);
        left != 0 && left == header.generation.load(Ordering::Acquire)
    }

    /// The requests that a lane's backends took and did not answer, oldest first.
    pub fn in_flight(&self, lane: u32) -> Vec<InFlight> {
        let control = self.map.lane(lane);
        let delivered = delivered(control.transmitting());
        let parsed = control.parsed.load(Ordering::Acquire);
        let mut found: Vec<_> = SlotIndex::all()
            .filter_map(|index| {
                let slot = self.map.slot(lane, index);
                let position = slot.position.load(Ordering::Acquire);
                let state = slot.state();
                let waits = match state {
                    SlotState::Vacant => false,
                    SlotState::Pending => position < parsed,
                    SlotState::Staged(n) => n > delivered,
                };
                let seen = InFlight {
                    request: request::request_of(slot),
                    position,
                    received_at: slot.received_at.load(Ordering::Relaxed),
                    started_at: slot.started_at.load(Ordering::Relaxed),
                    attempts: slot.attempts.load(Ordering::Acquire),
                    crashes: slot.crashes.load(Ordering::Relaxed),
                };
                // A slot that was refilled while it was read held a request that was answered just
                // now. `fill` stores the position first, so a changed position tells.
                let same = slot.position.load(Ordering::Acquire) == position;
                (waits && same).then_some(seen)
            })
            .collect();
        found.sort_by_key(|seen| seen.position);
        found
    }

    /// Stream position behind the last byte that a lane's backends have received.
    pub fn received(&self, lane: u32) -> u64 {
        let record = self.map.lane(lane).receiving();
        let before = record.received.load(Ordering::Relaxed);
        before.saturating_add(record.message.msg_len.load(Ordering::Acquire).into())
    }

    /// Stream position up to which a lane's backends have taken requests.
    pub fn taken(&self, lane: u32) -> u64 {
        self.map.lane(lane).parsed.load(Ordering::Acquire)
    }

    pub(crate) fn file(&self) -> &std::fs::File {
        &self.file
    }

    /// A lane's totals since attach.
    pub fn totals(&self, lane: u32) -> TotalsSnapshot {
        let totals = &self.map.lane(lane).totals;
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        TotalsSnapshot {
            reads: load(&totals.reads),
            writes: load(&totals.writes),
            flushes: load(&totals.flushes),
            trims: load(&totals.trims),
            others: load(&totals.others),
            errors: load(&totals.errors),
            read_bytes: load(&totals.read_bytes),
            written_bytes: load(&totals.written_bytes),
        }
    }

    /// `CLOCK_MONOTONIC` nanoseconds at which a lane's backend last took requests; 0 if never.
    pub fn last_received_at(&self, lane: u32) -> u64 {
        self.map.lane(lane).last_received_at.load(Ordering::Relaxed)
    }

    /// The requests that no backend has taken: those in the bytes that a lane's backend has received,
    /// and in those that wait in its `socket`, as a peek shows them.
    pub fn unread(&self, lane: u32, socket: &[u8]) -> Vec<Unread> {
        let start = self.taken(lane);
        let mut bytes = match self.unparsed(lane, MAX_UNREAD_BYTES) {
            Ok(rest) => rest,
            // The backend is skipping a payload: the rest of it precedes the next header.
            Err(skip) => {
                let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(socket.len());
                return requests_in(&socket[skip..], start);
            }
        };
        bytes.extend_from_slice(socket);
        requests_in(&bytes, start)
    }

    /// The bytes that a lane's backend has received and not taken as requests, at most `limit`.
    /// A skipped payload is reported as `Err(bytes still to come)`.
    fn unparsed(&self, lane: u32, limit: u64) -> Result<Vec<u8>, u64> {
        let layout = self.map.layout();
        let control = self.map.lane(lane);
        let received = self.received(lane);
        let parsed = control.parsed.load(Ordering::Acquire);
        let base = control.receiving().base.load(Ordering::Relaxed);
        if parsed > received {
            return Err(parsed - received);
        }
        let length = (received - parsed).min(limit).min(layout.ring);
        let start = parsed.saturating_sub(base) % layout.ring;
        let mut bytes = vec![0; length as usize];
        let first = length.min(layout.ring - start) as usize;
        let ring = layout.lane(lane) + layout.ring_offset();
        let (head, tail) = bytes.split_at_mut(first);
        let read = self
            .file
            .read_exact_at(head, ring + start)
            .and_then(|()| self.file.read_exact_at(tail, ring));
        Ok(if read.is_ok() { bytes } else { Vec::new() })
    }
}

/// At most as many as a lane has slots: the driver sends no more without an answer, but a backend can write
/// anything into its ring.
fn requests_in(mut bytes: &[u8], mut position: u64) -> Vec<Unread> {
    let mut found = Vec::new();
    while let Some(header) = bytes.first_chunk().filter(|_| found.len() < SLOTS as usize) {
        // A running backend moves the bytes meanwhile; what is left then is no request.
        let Ok(request) = Request::decode(header) else {
            break;
        };
        if request.command != CommandType::DISC {
            found.push(Unread { request, position });
        }
        let length = Request::LEN + request.payload_len() as usize;
        bytes = bytes.get(length..).unwrap_or_default();
        position = position.saturating_add(length as u64);
    }
    found
}

/// Number of the last transmission that the kernel has entirely. A committed one that is still
/// being sent counts as answered for a successor, but the kernel still waits for their replies.
fn delivered(record: &TransmitRecord) -> u64 {
    let sequence = record.sequence.load(Ordering::Acquire);
    let sent = record.sent.load(Ordering::Relaxed);
    let sent = sent.saturating_add(record.message.msg_len.load(Ordering::Acquire).into());
    let complete = sent >= record.length.load(Ordering::Relaxed);
    if complete { sequence } else { sequence.saturating_sub(1) }
}

#[cfg(test)]
mod tests;
