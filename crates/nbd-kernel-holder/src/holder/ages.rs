//! When requests came that wait.

use std::time::Instant;

use nbd_ledger::arrivals::Arrivals;

/// When what had come.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    pub(crate) lanes: Vec<Arrivals>,
    /// When to look next; nothing while no request is in flight.
    pub(crate) next: Option<Instant>,
}

impl Ages {
    /// When a request at a stream position of a lane had come, on the ledger's clock.
    pub(crate) fn at(&self, lane: u32, position: u64) -> Option<u64> {
        self.lanes.get(lane as usize)?.at(position)
    }
}
