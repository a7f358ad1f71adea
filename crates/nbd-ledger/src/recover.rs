//! Recovery: a successor continues where its predecessor was stopped.
//!
//! A kill may interrupt each step here too. So no store of recovery changes what the next attempt
//! finds: freeing an uncommitted slot and making a staged one pending can be repeated.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::audit::{self, Findings};
use crate::crash_points::{CrashPoint, crash_point};
use crate::latency::Latencies;
use crate::layout::SlotState;
use crate::ledger::{Lane, Ledger, LedgerError, system};
use crate::map::{LaneWords, Ring, TransmitArea};
use crate::receive::{Receiver, Ticket};
use crate::request::REQUEST_BYTES;
use crate::transmit::{Tally, Transmitter};

/// What is left to do for a successor, in this order: [`Transmitter::finish`], then execute the
/// tickets, then receive.
#[derive(Debug)]
pub struct Recovery {
    /// Requests that were received and not answered, oldest first.
    pub tickets: Vec<Ticket>,
    /// Bytes of replies that were committed and not sent.
    pub unsent: u64,
}

impl Ledger {
    /// Opens a lane whose server end is `socket`, checks all that the ledger says about it, and
    /// brings it into the state from which a successor continues. The predecessor must be dead: this
    /// call changes what a live one relies on.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LaneTaken`] if this mapping has opened the lane already,
    /// [`LedgerError::Corrupt`] if the lane's words contradict each other, and
    /// [`LedgerError::System`] if ring or transmit area cannot be mapped. After the latter two the
    /// lane may be tried again.
    ///
    /// # Panics
    ///
    /// If the layout has no such lane.
    pub fn open_lane(
        self: &Arc<Self>,
        index: u32,
        socket: OwnedFd,
    ) -> Result<(Receiver, Transmitter, Recovery), LedgerError> {
        if self.opened[index as usize].swap(true, Ordering::AcqRel) {
            return Err(LedgerError::LaneTaken(index));
        }
        // Given back only on failure: after success ring slices and tickets of the lane may live on.
        self.take_over(index, socket)
            .inspect_err(|_| self.opened[index as usize].store(false, Ordering::Release))
    }

    fn take_over(
        self: &Arc<Self>,
        index: u32,
        socket: OwnedFd,
    ) -> Result<(Receiver, Transmitter, Recovery), LedgerError> {
        let layout = self.map.layout();
        let ring = Ring::new(self.file.as_fd(), layout, index).map_err(system("map"))?;
        let area = TransmitArea::new(self.file.as_fd(), layout, index).map_err(system("map"))?;
        let findings = audit::check_lane(&self.map, index, &ring, area.as_slice())?;
        let lane = Arc::new(Lane {
            ledger: Arc::clone(self),
            words: LaneWords::new(&self.map, index),
            index,
            ring,
            socket,
            complete: AtomicU64::new(findings.complete()),
        });
        Ok(take_over(&lane, area, &findings))
    }
}

fn take_over(
    lane: &Arc<Lane>,
    area: TransmitArea,
    findings: &Findings,
) -> (Receiver, Transmitter, Recovery) {
    let ring = lane.ledger().layout().ring;
    for &slot in &findings.uncommitted {
        // Before `parsed` moves: once it passes this slot's position, the slot would seem to hold a
        // request.
        lane.slot(slot).set_state(SlotState::Vacant);
        crash_point(CrashPoint::SlotVacated);
    }
    let mut writes = VecDeque::new();
    let mut tickets = Vec::with_capacity(findings.pending.len());
    for pending in &findings.pending {
        // A staged and uncommitted reply is staged anew, at another place and under another number.
        lane.slot(pending.slot).set_state(SlotState::Pending);
        crash_point(CrashPoint::Restored);
        let payload =
            pending.position.wrapping_add(REQUEST_BYTES).wrapping_sub(findings.base) % ring;
        let ticket = Ticket::new(lane, pending.slot, pending.request, payload);
        if !ticket.payload().is_empty() {
            writes.push_back((pending.slot, pending.position));
        }
        tickets.push(ticket);
    }
    let receiver = Receiver {
        lane: Arc::clone(lane),
        received: findings.received,
        base: findings.base,
        parsed: findings.parsed,
        epoch: findings.receive_epoch,
        writes,
        next_slot: 0,
    };
    let transmitter = Transmitter {
        lane: Arc::clone(lane),
        area,
        epoch: findings.transmit_epoch,
        sequence: findings.sequence,
        unfinished: if findings.sent < findings.length { findings.length } else { 0 },
        staged: 0,
        tally: Tally::default(),
        latencies: Latencies::default(),
        recorded: lane.control().recorded.load(Ordering::Relaxed),
    };
    (receiver, transmitter, Recovery { tickets, unsent: findings.length - findings.sent })
}
