//! Memory for the data of all clients together: who wants more than there is waits for its turn.
//!
//! Those who wait are served in the order in which they came, so nobody is overtaken for ever,
//! however greedy the others are, and however much it wants itself. A connection needs none of
//! this memory for small requests: for those it has buffers of its own.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Memory that is kept for the next ones who want some, in bytes.
const KEPT: usize = 32 << 20;

/// A limit, and what is used of it.
pub(crate) struct Memory {
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    used: usize,
    /// The number of the next one who has to wait, and of the one whose turn it is.
    last: u64,
    turn: u64,
    /// Blocks that nobody uses.
    kept: Vec<Vec<u8>>,
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Arc::new(Self { limit, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Some of the memory, unless there is too little or somebody waits for it. More than there
    /// can ever be counts as all of it.
    pub(crate) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Grant> {
        let bytes = self.cut(bytes);
        let mut state = self.lock();
        let is_free = state.turn == state.last && self.limit - state.used >= bytes;
        is_free.then(|| self.grant(&mut state, bytes))
    }

    /// The same, and waits for it.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Grant {
        let bytes = self.cut(bytes);
        let mut state = self.lock();
        let number = state.last;
        state.last += 1;
        while state.turn != number || self.limit - state.used < bytes {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.turn += 1;
        let grant = self.grant(&mut state, bytes);
        drop(state);
        // There may be enough for the next one as well.
        self.changed.notify_all();
        grant
    }

    /// Whether more than half is used. Then nobody is given a lot before it has shown that it needs it.
    pub(crate) fn is_scarce(&self) -> bool {
        self.lock().used > self.limit / 2
    }

    /// Whether somebody waits.
    pub(crate) fn is_wanted(&self) -> bool {
        let state = self.lock();
        state.turn != state.last
    }

    /// Gives what is kept back to the system.
    pub(crate) fn trim(&self) {
        let kept = std::mem::take(&mut self.lock().kept);
        drop(kept);
    }

    /// A block for which there is a grant.
    pub(crate) fn block(&self, grant: Grant, size: usize) -> Block {
        let mut state = self.lock();
        let fits = |block: &Vec<u8>| block.len() == size;
        let kept = state.kept.iter().position(fits).map(|at| state.kept.swap_remove(at));
        drop(state);
        Block { bytes: kept.unwrap_or_else(|| vec![0; size]), grant: Some(grant) }
    }

    fn cut(&self, bytes: u64) -> usize {
        usize::try_from(bytes).unwrap_or(usize::MAX).min(self.limit)
    }

    fn grant(self: &Arc<Self>, state: &mut State, bytes: usize) -> Grant {
        state.used += bytes;
        Grant { memory: Arc::clone(self), bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// A right to some of the memory, which ends with this.
#[derive(Debug)]
pub(crate) struct Grant {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        state.used -= self.bytes;
        let is_wanted = state.turn != state.last;
        drop(state);
        if is_wanted {
            self.memory.changed.notify_all();
        }
    }
}

/// Bytes that lie in memory of which somebody keeps count, or in a connection's own.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    grant: Option<Grant>,
}

impl Block {
    /// One of a connection's own.
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
        let kept: usize = state.kept.iter().map(Vec::len).sum();
        // Little is kept where there is little.
        if kept + self.bytes.len() <= KEPT.min(grant.memory.limit / 4) {
            state.kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_given_back_can_be_had_again() {
        let memory = Memory::new(100);
        let first = memory.try_take(60).unwrap();
        assert!(memory.try_take(41).is_none());
        let second = memory.try_take(40).unwrap();
        assert!(memory.try_take(1).is_none());
        drop(first);
        drop(memory.try_take(60).unwrap());
        drop(second);
        // More than there is: all of it.
        let all = memory.try_take(u64::MAX).unwrap();
        assert!(memory.try_take(1).is_none());
        drop(all);
        assert_eq!(memory.lock().used, 0);
    }

    #[test]
    fn nobody_is_overtaken() {
        let memory = Memory::new(100);
        let first = memory.try_take(50).unwrap();
        let (sender, order) = channel();
        thread::scope(|scope| {
            for (number, bytes) in [(0, 100), (1, 10), (2, 100), (3, 10)] {
                let (memory, sender) = (&memory, sender.clone());
                scope.spawn(move || {
                    let grant = memory.take(bytes);
                    sender.send(number).unwrap();
                    drop(grant);
                });
                while memory.lock().last == number {
                    thread::yield_now();
                }
            }
            // There would be enough for it.
            assert!(memory.is_wanted() && memory.try_take(10).is_none());
            drop(first);
        });
        let order: Vec<_> = order.try_iter().collect();
        assert_eq!(order, [0, 1, 2, 3]);
        assert!(!memory.is_wanted() && memory.try_take(100).is_some());
    }

    #[test]
    fn blocks_are_used_again_and_do_not_pile_up() {
        let memory = Memory::new(4000);
        let block = |size: usize| memory.block(memory.try_take(size as u64).unwrap(), size);
        let mut used = block(1000);
        used.bytes_mut()[0] = 7;
        drop(used);
        assert_eq!(memory.lock().kept.len(), 1);
        assert_eq!(block(999).bytes(), [0; 999]);
        assert_eq!(block(1000).bytes()[0], 7);
        drop([block(1000), block(1000)]);
        assert_eq!(memory.lock().kept.iter().map(Vec::len).sum::<usize>(), 1000);
        memory.trim();
        assert!(memory.lock().kept.is_empty());
        assert_eq!(memory.lock().used, 0);
    }
}
