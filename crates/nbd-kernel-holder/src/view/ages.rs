//! Since when requests wait, also those that no backend has read.
//!
//! While nothing is in flight the event loop polls the lanes for bytes, which costs nothing until one
//! comes. From then on the holder looks once a second how far the streams have come, until nothing is
//! in flight again. So a request is known to the moment if it is the first one, and to a second if
//! others wait already.

use std::time::{Duration, Instant};

use nbd_ledger::Inspector;
use nbd_ledger::arrivals::Arrivals;

use crate::holder::Holder;
use crate::holder::lanes;
use crate::view::clock::monotonic;

/// How often to look while requests are in flight.
const INTERVAL: Duration = Duration::from_secs(1);

impl Holder {
    fn has_ages(&self) -> bool {
        self.core.watches_lanes()
    }

    /// Whether bytes on a lane are to be noticed at once.
    pub(crate) fn watches_arrivals(&self) -> bool {
        self.has_ages() && self.told.ages.next.is_none()
    }

    /// When to look at the lanes.
    pub(crate) fn ages_due(&self) -> Option<Instant> {
        self.told.ages.next.filter(|_| self.has_ages())
    }

    pub(crate) fn check_ages(&mut self) {
        if self.ages_due().is_some_and(|due| Instant::now() >= due) {
            self.note_arrivals();
        }
    }

    /// Notes what has come by now. While something is in flight it is looked at again.
    pub(crate) fn note_arrivals(&mut self) {
        let Some(inspector) = &self.data.inspector else {
            return;
        };
        let now = monotonic();
        while self.told.ages.lanes.len() < self.data.lanes.len() {
            let lane = self.told.ages.lanes.len() as u32;
            self.told.ages.lanes.push(Arrivals::left(inspector, lane, now));
        }
        let mut is_idle = true;
        for (lane, (arrivals, socket)) in
            (0u32..).zip(self.told.ages.lanes.iter_mut().zip(&self.data.lanes))
        {
            // In this order what a backend receives meanwhile is not counted twice.
            let received = inspector.received(lane);
            let end = received.saturating_add(lanes::unread(socket));
            let is_new = arrivals.note(end, now);
            let positions = waiting(inspector, lane);
            let taken = inspector.taken(lane);
            is_idle &= !is_new && positions.is_empty() && taken == end;
            arrivals.keep(&positions, taken);
            if arrivals.write(inspector, lane).is_err() {
                // Only an adopted device would be without them, and there is nothing to be done.
                tracing::debug!(device = %self.device.name(), "the ages of requests cannot be kept");
            }
        }
        self.told.ages.next = (!is_idle).then(|| Instant::now() + INTERVAL);
    }
}

/// Stream positions of the requests that a backend has taken and not answered.
fn waiting(inspector: &Inspector, lane: u32) -> Vec<u64> {
    inspector.in_flight(lane).iter().map(|slot| slot.position).collect()
}
