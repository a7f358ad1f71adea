//! Grants for reads that no worker has begun.

use std::collections::HashMap;

use crate::memory_budget::Grant;

/// Grants that the connection can give back when its client is gone, however long the tasks wait
/// for a worker. A worker takes the grant when it begins the read: from then on, the memory is in
/// use.
#[derive(Default)]
pub(crate) struct QueuedGrants {
    grants: HashMap<u64, Grant>,
    next_id: u64,
}

impl QueuedGrants {
    /// Keeps a grant, and returns the id to take it with.
    pub(crate) fn add(&mut self, grant: Grant) -> u64 {
        self.next_id += 1;
        self.grants.insert(self.next_id, grant);
        self.next_id
    }

    /// The grant, unless the client is gone.
    pub(crate) fn take(&mut self, id: u64) -> Option<Grant> {
        self.grants.remove(&id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// Gives all memory back.
    pub(crate) fn clear(&mut self) {
        self.grants.clear();
    }
}
