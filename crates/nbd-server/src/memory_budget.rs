//! Memory for the data of all clients together. Requests beyond the limit queue.
//!
//! Waiting connections are served in the order in which they came, whatever they ask for, so none
//! waits for ever. A connection needs none of this memory for small requests: for those it has
//! buffers of its own.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Most bytes of unused blocks that are kept for later grants.
const MAX_CACHED_BYTES: usize = 32 << 20;

/// The limit, and how much of it is used.
pub(crate) struct MemoryBudget {
    limit: usize,
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Default)]
struct BudgetState {
    used: usize,
    /// Tickets of waiting connections: the next one to be given out, and the one that is served
    /// next. They are equal if no connection waits.
    next_ticket: u64,
    now_serving: u64,
    /// Unused blocks.
    cached: Vec<Vec<u8>>,
}

impl MemoryBudget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Arc::new(Self { limit, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Takes memory if there is enough and no other connection waits. A request for more than the
    /// limit is one for all of it.
    pub(crate) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Grant> {
        let bytes = self.clamp_to_limit(bytes);
        let mut state = self.lock();
        let is_free = state.now_serving == state.next_ticket && self.limit - state.used >= bytes;
        is_free.then(|| self.grant(&mut state, bytes))
    }

    /// Takes memory, and waits for it.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Grant {
        let bytes = self.clamp_to_limit(bytes);
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        while state.now_serving != ticket || self.limit - state.used < bytes {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.now_serving += 1;
        let grant = self.grant(&mut state, bytes);
        drop(state);
        // There may be enough for the next connection as well.
        self.changed.notify_all();
        grant
    }

    /// Whether more than half is used. Then a client gets much memory only after it has sent data.
    pub(crate) fn is_scarce(&self) -> bool {
        self.lock().used > self.limit / 2
    }

    /// Whether a connection waits.
    pub(crate) fn has_waiters(&self) -> bool {
        let state = self.lock();
        state.now_serving != state.next_ticket
    }

    /// Frees the unused blocks.
    pub(crate) fn trim(&self) {
        let cached = std::mem::take(&mut self.lock().cached);
        drop(cached);
    }

    /// A block of `size` bytes, counted by `grant`. Its content is arbitrary.
    pub(crate) fn block(&self, grant: Grant, size: usize) -> Block {
        let mut state = self.lock();
        let fits = |block: &Vec<u8>| block.len() == size;
        let cached = state.cached.iter().position(fits).map(|at| state.cached.swap_remove(at));
        drop(state);
        Block { bytes: cached.unwrap_or_else(|| vec![0; size]), grant: Some(grant) }
    }

    fn clamp_to_limit(&self, bytes: u64) -> usize {
        usize::try_from(bytes).unwrap_or(usize::MAX).min(self.limit)
    }

    fn grant(self: &Arc<Self>, state: &mut BudgetState, bytes: usize) -> Grant {
        state.used += bytes;
        Grant { memory: Arc::clone(self), bytes }
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBudget").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// A share of the memory, returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Grant {
    memory: Arc<MemoryBudget>,
    bytes: usize,
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        state.used -= self.bytes;
        let has_waiters = state.now_serving != state.next_ticket;
        drop(state);
        if has_waiters {
            self.memory.changed.notify_all();
        }
    }
}

/// Bytes in common memory, or in a connection's own.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    grant: Option<Grant>,
}

impl Block {
    /// A block of a connection's own, which no grant counts.
    pub(crate) fn own(size: usize) -> Self {
        Self { bytes: vec![0; size], grant: None }
    }

    pub(crate) fn is_own(&self) -> bool {
        self.grant.is_none()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(grant) = self.grant.take() else {
            return;
        };
        let mut state = grant.memory.lock();
        let cached: usize = state.cached.iter().map(Vec::len).sum();
        // Under a small limit, unused blocks must not take most of it.
        if cached + self.bytes.len() <= MAX_CACHED_BYTES.min(grant.memory.limit / 4) {
            state.cached.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn returned_memory_can_be_taken_again() {
        let memory = MemoryBudget::new(100);
        let first = memory.try_take(60).unwrap();
        assert!(memory.try_take(41).is_none());
        let second = memory.try_take(40).unwrap();
        assert!(memory.try_take(1).is_none());
        drop(first);
        drop(memory.try_take(60).unwrap());
        drop(second);
        // More than the limit: all of it.
        let all = memory.try_take(u64::MAX).unwrap();
        assert!(memory.try_take(1).is_none());
        drop(all);
        assert_eq!(memory.lock().used, 0);
    }

    #[test]
    fn waiting_connections_are_served_in_order() {
        let memory = MemoryBudget::new(100);
        let first = memory.try_take(50).unwrap();
        let (sender, order) = channel();
        thread::scope(|scope| {
            for (ticket, bytes) in [(0, 100), (1, 10), (2, 100), (3, 10)] {
                let (memory, sender) = (&memory, sender.clone());
                scope.spawn(move || {
                    let grant = memory.take(bytes);
                    sender.send(ticket).unwrap();
                    drop(grant);
                });
                while memory.lock().next_ticket == ticket {
                    thread::yield_now();
                }
            }
            // There is enough for it, but others came first.
            assert!(memory.has_waiters() && memory.try_take(10).is_none());
            drop(first);
        });
        let order: Vec<_> = order.try_iter().collect();
        assert_eq!(order, [0, 1, 2, 3]);
        assert!(!memory.has_waiters() && memory.try_take(100).is_some());
    }

    #[test]
    fn unused_blocks_are_reused_up_to_a_limit() {
        let memory = MemoryBudget::new(4000);
        let block = |size: usize| memory.block(memory.try_take(size as u64).unwrap(), size);
        let mut used = block(1000);
        used.bytes_mut()[0] = 7;
        drop(used);
        assert_eq!(memory.lock().cached.len(), 1);
        assert_eq!(block(999).bytes(), [0; 999]);
        assert_eq!(block(1000).bytes()[0], 7);
        drop([block(1000), block(1000)]);
        assert_eq!(memory.lock().cached.iter().map(Vec::len).sum::<usize>(), 1000);
        memory.trim();
        assert!(memory.lock().cached.is_empty());
        assert_eq!(memory.lock().used, 0);
    }
}
