//! Memory that connections take all at once, or in steps.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::steps::{PartialMessage, STEP, is_safe};

/// How often a connection that waits for memory looks after its client.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Memory of one kind: how much there is, and how much of it is used.
pub(super) struct Pool {
    limit: usize,
    state: Mutex<PoolState>,
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct PoolState {
    pub(super) used: usize,
    /// Tickets of the connections that wait, in order.
    queue: VecDeque<u64>,
    pub(super) next_ticket: u64,
    /// Messages that hold a part of their memory, and how many of them wait for more.
    pub(super) partial: Vec<(u64, PartialMessage)>,
    next_message: u64,
    pub(super) waiting_for_step: usize,
}

impl PoolState {
    pub(super) fn has_waiters(&self) -> bool {
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

impl Pool {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Takes memory if there is enough and no other connection waits. A request for more than the
    /// limit is one for all of it.
    pub(super) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Grant> {
        let bytes = self.clamp_to_limit(bytes);
        let mut state = self.lock();
        let is_free = !state.has_waiters() && self.limit - state.used >= bytes;
        is_free.then(|| self.grant(&mut state, bytes))
    }

    /// Takes memory, and waits for it. `None` if the client is gone by then: `is_gone` is asked
    /// from time to time, without a lock of this budget.
    pub(super) fn take(
        self: &Arc<Self>,
        bytes: u64,
        is_gone: impl FnMut() -> bool,
    ) -> Option<Grant> {
        let bytes = self.clamp_to_limit(bytes);
        self.wait_in_queue(
            |state| self.limit - state.used >= bytes,
            |state| self.grant(state, bytes),
            is_gone,
        )
    }

    /// Takes the first step of the memory for a message if that is possible at once; see
    /// [`try_take`](Self::try_take).
    pub(super) fn try_begin(self: &Arc<Self>, length: u64) -> Option<Grant> {
        let message = self.message(length);
        let mut state = self.lock();
        let is_free = state.queue.is_empty() && state.may_begin(self.limit, message);
        is_free.then(|| self.begin_granted(&mut state, message))
    }

    /// Takes the first step of the memory for a message, and waits for it; see
    /// [`take`](Self::take).
    pub(super) fn begin(
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

    /// Whether more than half is used.
    pub(super) fn is_scarce(&self) -> bool {
        self.lock().used > self.limit / 2
    }

    /// Waits for its turn and until a condition holds, or the client is gone.
    fn wait_in_queue(
        &self,
        may_take: impl Fn(&PoolState) -> bool,
        take: impl FnOnce(&mut PoolState) -> Grant,
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

    fn begin_granted(self: &Arc<Self>, state: &mut PoolState, message: PartialMessage) -> Grant {
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

    fn grant(self: &Arc<Self>, state: &mut PoolState, bytes: usize) -> Grant {
        state.used += bytes;
        Grant { pool: Arc::clone(self), bytes, partial: None }
    }

    /// Waits for a change. At `next_check` asks whether the client is gone, and returns that. The
    /// answer takes the connection's lock, under which grants are dropped: it must not be asked for
    /// under the lock of this budget.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, PoolState>,
        next_check: &mut Instant,
        is_gone: &mut impl FnMut() -> bool,
    ) -> (MutexGuard<'a, PoolState>, bool) {
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

    pub(super) fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// A share of the memory, returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Grant {
    pool: Arc<Pool>,
    pub(super) bytes: usize,
    /// The message among `PoolState::partial`, until the grant covers all of it.
    partial: Option<u64>,
}

impl Grant {
    /// Whether more steps are to come.
    pub(crate) fn is_partial(&self) -> bool {
        self.partial.is_some()
    }

    /// Takes the next step if there is enough memory and that is safe. Does not wait for its turn:
    /// those in the queue hold nothing, and wait for this.
    pub(super) fn try_grow(&mut self) -> bool {
        let pool = Arc::clone(&self.pool);
        self.grow_if_safe(&mut pool.lock())
    }

    /// Takes the next step, and waits for it. `false` if the client is gone by then; see
    /// [`Pool::take`].
    pub(super) fn grow(&mut self, mut is_gone: impl FnMut() -> bool) -> bool {
        let pool = Arc::clone(&self.pool);
        let mut state = pool.lock();
        state.waiting_for_step += 1;
        let mut next_check = Instant::now() + CLIENT_CHECK_INTERVAL;
        let has_grown = loop {
            if self.grow_if_safe(&mut state) {
                break true;
            }
            let has_left;
            (state, has_left) = pool.wait(state, &mut next_check, &mut is_gone);
            if has_left {
                break false;
            }
        };
        state.waiting_for_step -= 1;
        drop(state);
        // The queue stood still meanwhile.
        pool.changed.notify_all();
        has_grown
    }

    /// `true` if a step was taken, or there is none to take.
    fn grow_if_safe(&mut self, state: &mut PoolState) -> bool {
        let at = state.partial.iter().position(|(id, _)| Some(*id) == self.partial);
        let Some(at) = at else { return true };
        let (id, message) = state.partial.swap_remove(at);
        let (limit, step) = (self.pool.limit, message.next_step());
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
                self.pool.changed.notify_all();
            }
        }
        true
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.used -= self.bytes;
        if self.is_partial() {
            state.partial.retain(|(id, _)| Some(*id) != self.partial);
        }
        let has_waiters = state.has_waiters();
        drop(state);
        if has_waiters {
            self.pool.changed.notify_all();
        }
    }
}
