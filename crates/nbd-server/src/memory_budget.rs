//! Memory for the data of all clients together. Requests beyond the limit queue.
//!
//! Waiting connections are served in the order in which they came, whatever they ask for, so none
//! waits for ever. A connection needs none of this memory for small requests: for those it has
//! buffers of its own.
//!
//! A message that is received takes its memory in steps, as its data comes: a client that sends
//! slowly holds what it has sent, rounded up to a [`STEP`], and not what its header announces.
//!
//! # Why no connection waits for ever
//!
//! A message that needs one step only, and a read, take all of their memory at once and hold none
//! while they wait. What they hold comes back: workers wait for no memory, and a client that reads
//! or sends too slowly is disconnected while others wait ([`Limits::stall`]). Messages that hold a
//! part and wait for the next step are the only ones that could block each other.
//!
//! 1. A step is granted only if it is [safe](steps::is_safe): all of these messages can still be
//!    completed in some order. The first one of that order never has an unsafe step, so it waits
//!    only for memory that comes back, and for its client, which must send at the minimum rate.
//! 2. While a message waits for a step, nothing else is granted but steps. So there are finitely
//!    many messages with a part, and no stream of reads or new messages overtakes them for ever.
//! 3. By 1 the messages of 2 are completed or disconnected one after the other. Then the queue
//!    goes on.
//!
//! [`Limits::stall`]: crate::Limits::stall

mod block;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use block::Block;
use block::BlockCache;
pub(crate) use steps::STEP;
use steps::{PartialMessage, is_safe};

/// How often a connection that waits for memory looks after its client.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The limit, and how much of it is used.
pub(crate) struct MemoryBudget {
    limit: usize,
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Default)]
struct BudgetState {
    used: usize,
    /// Tickets of the connections that wait, in order.
    queue: VecDeque<u64>,
    next_ticket: u64,
    /// Messages that hold a part of their memory, and how many of them wait for more.
    partial: Vec<(u64, PartialMessage)>,
    next_message: u64,
    waiting_for_step: usize,
    cache: BlockCache,
}

impl BudgetState {
    fn has_waiters(&self) -> bool {
        !self.queue.is_empty() || self.waiting_for_step > 0
    }

    /// Whether a connection that holds nothing may take its first step.
    fn may_begin(&self, limit: usize, message: PartialMessage) -> bool {
        // The order matters for speed only: the first two are all that most requests need.
        limit - self.used >= message.next_step()
            && self.waiting_for_step == 0
            && (message.rest <= STEP || self.is_safe_with(limit, message.after(STEP)))
    }

    fn is_safe_with(&self, limit: usize, message: PartialMessage) -> bool {
        let others = self.partial.iter().map(|(_, message)| *message);
        is_safe(limit, others.chain([message]))
    }
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
        let is_free = !state.has_waiters() && self.limit - state.used >= bytes;
        is_free.then(|| self.grant(&mut state, bytes))
    }

    /// Takes memory, and waits for it. `None` if the client is gone by then: `is_gone` is asked
    /// from time to time, without a lock of this budget.
    pub(crate) fn take(
        self: &Arc<Self>,
        bytes: u64,
        is_gone: impl FnMut() -> bool,
    ) -> Option<Grant> {
        let bytes = self.clamp_to_limit(bytes);
        self.wait_in_queue(
            |state| self.limit - state.used >= bytes && state.waiting_for_step == 0,
            |state| self.grant(state, bytes),
            is_gone,
        )
    }

    /// Takes the first step of the memory for a message if that is possible at once; see
    /// [`try_take`](Self::try_take).
    pub(crate) fn try_begin(self: &Arc<Self>, length: u64) -> Option<Grant> {
        let message = self.message(length);
        let mut state = self.lock();
        let is_free = state.queue.is_empty() && state.may_begin(self.limit, message);
        is_free.then(|| self.begin_granted(&mut state, message))
    }

    /// Takes the first step of the memory for a message, and waits for it; see
    /// [`take`](Self::take).
    pub(crate) fn begin(
        self: &Arc<Self>,
        length: u64,
        is_gone: impl FnMut() -> bool,
    ) -> Option<Grant> {
        let message = self.message(length);
        self.wait_in_queue(
            |state| state.may_begin(self.limit, message),
            |state| self.begin_granted(state, message),
            is_gone,
        )
    }

    /// Whether more than half is used. Then a client gets much memory only after it has sent data.
    pub(crate) fn is_scarce(&self) -> bool {
        self.lock().used > self.limit / 2
    }

    /// Whether a connection waits.
    pub(crate) fn has_waiters(&self) -> bool {
        self.lock().has_waiters()
    }

    /// Frees the unused blocks.
    pub(crate) fn trim(&self) {
        let unused = std::mem::take(&mut self.lock().cache.unused);
        drop(unused);
    }

    /// Waits for its turn and until a condition holds, or the client is gone.
    fn wait_in_queue(
        &self,
        may_take: impl Fn(&BudgetState) -> bool,
        take: impl FnOnce(&mut BudgetState) -> Grant,
        mut is_gone: impl FnMut() -> bool,
    ) -> Option<Grant> {
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back(ticket);
        let mut next_check = Instant::now() + CLIENT_CHECK_INTERVAL;
        let can_take = loop {
            if state.queue.front() == Some(&ticket) && may_take(&state) {
                break true;
            }
            let has_left;
            (state, has_left) = self.wait(state, &mut next_check, &mut is_gone);
            if has_left {
                break false;
            }
        };
        state.queue.retain(|other| *other != ticket);
        let grant = can_take.then(|| take(&mut state));
        drop(state);
        // There may be enough for the next connection as well.
        self.changed.notify_all();
        grant
    }

    /// A message of this length that holds nothing yet.
    fn message(&self, length: u64) -> PartialMessage {
        PartialMessage { held: 0, rest: self.clamp_to_limit(length) }
    }

    fn clamp_to_limit(&self, bytes: u64) -> usize {
        usize::try_from(bytes).unwrap_or(usize::MAX).min(self.limit)
    }

    fn begin_granted(self: &Arc<Self>, state: &mut BudgetState, message: PartialMessage) -> Grant {
        let step = message.next_step();
        let mut grant = self.grant(state, step);
        if step < message.rest {
            let id = state.next_message;
            state.next_message += 1;
            state.partial.push((id, message.after(step)));
            grant.partial = Some(id);
        }
        grant
    }

    fn grant(self: &Arc<Self>, state: &mut BudgetState, bytes: usize) -> Grant {
        state.used += bytes;
        Grant { memory: Arc::clone(self), bytes, partial: None }
    }

    /// Waits for a change. At `next_check` asks whether the client is gone, and returns that. The
    /// answer takes the connection's lock, under which grants are dropped: it must not be asked for
    /// under the lock of this budget.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, BudgetState>,
        next_check: &mut Instant,
        is_gone: &mut impl FnMut() -> bool,
    ) -> (MutexGuard<'a, BudgetState>, bool) {
        let time = next_check.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout(state, time);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        // Other connections may wake this one often, so a timeout of one wait would not do.
        if Instant::now() < *next_check {
            return (state, false);
        }
        drop(state);
        let is_gone = is_gone();
        *next_check = Instant::now() + CLIENT_CHECK_INTERVAL;
        (self.lock(), is_gone)
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
    /// The message among [`BudgetState::partial`], until the grant covers all of it.
    partial: Option<u64>,
}

impl Grant {
    /// Whether more steps are to come.
    pub(crate) fn is_partial(&self) -> bool {
        self.partial.is_some()
    }

    /// Takes the next step if there is enough memory and that is safe. Does not wait for its turn:
    /// those in the queue hold nothing, and wait for this.
    fn try_grow(&mut self) -> bool {
        let memory = Arc::clone(&self.memory);
        self.grow_if_safe(&mut memory.lock())
    }

    /// Takes the next step, and waits for it. `false` if the client is gone by then; see
    /// [`MemoryBudget::take`].
    fn grow(&mut self, mut is_gone: impl FnMut() -> bool) -> bool {
        let memory = Arc::clone(&self.memory);
        let mut state = memory.lock();
        state.waiting_for_step += 1;
        let mut next_check = Instant::now() + CLIENT_CHECK_INTERVAL;
        let has_grown = loop {
            if self.grow_if_safe(&mut state) {
                break true;
            }
            let has_left;
            (state, has_left) = memory.wait(state, &mut next_check, &mut is_gone);
            if has_left {
                break false;
            }
        };
        state.waiting_for_step -= 1;
        drop(state);
        // The queue stood still meanwhile.
        memory.changed.notify_all();
        has_grown
    }

    /// `true` if a step was taken, or there is none to take.
    fn grow_if_safe(&mut self, state: &mut BudgetState) -> bool {
        let at = state.partial.iter().position(|(id, _)| Some(*id) == self.partial);
        let Some(at) = at else { return true };
        let (id, message) = state.partial.swap_remove(at);
        let (limit, step) = (self.memory.limit, message.next_step());
        let after = message.after(step);
        if limit - state.used < step || !state.is_safe_with(limit, after) {
            state.partial.push((id, message));
            return false;
        }
        state.used += step;
        self.bytes += step;
        if after.rest > 0 {
            state.partial.push((id, after));
        } else {
            self.partial = None;
            // Steps of others may be safe now that what this message holds is sure to come back.
            if state.has_waiters() {
                self.memory.changed.notify_all();
            }
        }
        true
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        state.used -= self.bytes;
        if self.is_partial() {
            state.partial.retain(|(id, _)| Some(*id) != self.partial);
        }
        let has_waiters = state.has_waiters();
        drop(state);
        if has_waiters {
            self.memory.changed.notify_all();
        }
    }
}
