//! The pool of connections, and the jobs that wait for one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbd_net::uri::Retry;

use crate::connection::Connection;
use crate::job::Job;
use crate::sync::lock;

/// The most different failures that are logged during one outage.
const MAX_COMPLAINTS: usize = 8;

/// The connections of a client.
pub(crate) struct ConnectionPool {
    state: Mutex<State>,
    changed: Condvar,
    retry: Retry,
}

struct State {
    up: Vec<Arc<Connection>>,
    /// Counts jobs, to spread them over the connections in turn.
    turn: usize,
    waiting: VecDeque<Arc<Job>>,
    /// Set while there is no connection.
    outage: Option<Outage>,
    /// Counts how often the first connection has come up.
    epoch: u64,
    /// Whether there may be more than one connection.
    is_multi: bool,
    is_closing: bool,
    /// Threads that make and use connections.
    threads: usize,
}

struct Outage {
    since: Instant,
    is_first: bool,
    /// Requests fail at once.
    is_expired: bool,
    told: Vec<String>,
}

/// How the pool changed when a connection was added or removed.
pub(crate) enum PoolChange {
    /// There are others.
    None,
    /// The last one has gone; so many requests wait in addition to its own.
    AllLost { waiting: usize },
    /// It is the first one after such a time.
    Reconnected { after: Duration, is_first: bool },
}

impl ConnectionPool {
    pub(crate) fn new(retry: Retry) -> Self {
        let outage =
            Outage { since: Instant::now(), is_first: true, is_expired: false, told: Vec::new() };
        let state = State {
            up: Vec::new(),
            turn: 0,
            waiting: VecDeque::new(),
            outage: Some(outage),
            epoch: 0,
            is_multi: false,
            is_closing: false,
            threads: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), retry }
    }

    /// Sends a job over one of the connections, or keeps it until there is one.
    pub(crate) fn dispatch(&self, mut job: Arc<Job>) {
        loop {
            let mut state = lock(&self.state);
            if state.outage.as_ref().is_some_and(|outage| outage.is_expired) {
                drop(state);
                return job.fail_with_eio();
            }
            if state.is_closing {
                // A successor carries it out.
                drop(state);
                return;
            }
            state.turn = state.turn.wrapping_add(1);
            let count = state.up.len().max(1);
            let Some(connection) = state.up.get(state.turn % count).cloned() else {
                state.waiting.push_back(job);
                return;
            };
            drop(state);
            match connection.submit(job) {
                Ok(()) => return,
                // It has just left the pool.
                Err(refused) => job = refused,
            }
        }
    }

    /// A connection may be used from now on. Returns what has waited for it, oldest first.
    pub(crate) fn join(
        &self,
        connection: &Arc<Connection>,
        is_first: bool,
    ) -> (Vec<Arc<Job>>, PoolChange) {
        let mut state = lock(&self.state);
        if is_first {
            state.epoch += 1;
            state.is_multi = connection.negotiated.is_multi;
        }
        state.up.push(Arc::clone(connection));
        let mut jobs: Vec<_> = state.waiting.drain(..).collect();
        jobs.sort_by_key(|job| job.id);
        let change = match state.outage.take() {
            None => PoolChange::None,
            Some(outage) => {
                PoolChange::Reconnected { after: outage.since.elapsed(), is_first: outage.is_first }
            }
        };
        drop(state);
        self.changed.notify_all();
        (jobs, change)
    }

    /// A connection must not be used any more.
    pub(crate) fn leave(&self, connection: &Arc<Connection>) -> PoolChange {
        let mut state = lock(&self.state);
        state.up.retain(|other| !Arc::ptr_eq(other, connection));
        if !state.up.is_empty() || state.outage.is_some() {
            return PoolChange::None;
        }
        let since = Instant::now();
        let told = Vec::new();
        state.outage = Some(Outage { since, is_first: false, is_expired: false, told });
        PoolChange::AllLost { waiting: state.waiting.len() }
    }

    /// Until when requests wait; `None` if they wait forever, or no more.
    pub(crate) fn retry_deadline(&self) -> Option<Instant> {
        retry_deadline(&lock(&self.state), self.retry)
    }

    /// Fails all that waits if it has waited for long enough. Returns how many requests that were,
    /// the first time.
    pub(crate) fn expire(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        if retry_deadline(&state, self.retry).is_none_or(|end| Instant::now() < end) {
            return None;
        }
        let outage = state.outage.as_mut()?;
        outage.is_expired = true;
        let jobs = std::mem::take(&mut state.waiting);
        drop(state);
        for job in &jobs {
            job.fail_with_eio();
        }
        Some(jobs.len())
    }

    /// Whether to log this failure: it is new, and requests wait.
    pub(crate) fn is_new_complaint(&self, complaint: &str) -> bool {
        let mut state = lock(&self.state);
        let Some(outage) = &mut state.outage else {
            return false;
        };
        if outage.told.len() >= MAX_COMPLAINTS || outage.told.iter().any(|told| told == complaint) {
            return false;
        }
        outage.told.push(complaint.into());
        true
    }

    /// Waits for `pause`, but not beyond the retry deadline. `false` if the client is closing.
    pub(crate) fn sleep(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let end = self.retry_deadline().map_or(end, |deadline| end.min(deadline));
        let mut state = lock(&self.state);
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            if state.is_closing || rest.is_zero() {
                return !state.is_closing;
            }
            let waited = self.changed.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the first connection has come up again after `epoch`, and others may follow.
    /// Nothing if all is over.
    pub(crate) fn next_epoch(&self, epoch: u64) -> Option<u64> {
        let mut state = lock(&self.state);
        loop {
            if state.is_closing {
                return None;
            }
            if state.epoch != epoch && state.is_multi && !state.up.is_empty() {
                return Some(state.epoch);
            }
            state = self.wait(state);
        }
    }

    /// Whether more connections make sense.
    pub(crate) fn is_up(&self) -> bool {
        let state = lock(&self.state);
        state.is_multi && !state.up.is_empty() && !state.is_closing
    }

    /// Whether there has never been a connection.
    pub(crate) fn is_new(&self) -> bool {
        lock(&self.state).epoch == 0
    }

    pub(crate) fn is_closing(&self) -> bool {
        lock(&self.state).is_closing
    }

    /// The connections there are.
    pub(crate) fn connections(&self) -> Vec<Arc<Connection>> {
        lock(&self.state).up.clone()
    }

    /// Begins the end. `false` if it has begun already.
    pub(crate) fn close(&self) -> bool {
        let mut state = lock(&self.state);
        let is_first = !std::mem::replace(&mut state.is_closing, true);
        let unanswered = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        drop(unanswered);
        is_first
    }

    pub(crate) fn thread_started(&self) {
        lock(&self.state).threads += 1;
    }

    pub(crate) fn thread_ended(&self) {
        lock(&self.state).threads -= 1;
        self.changed.notify_all();
    }

    /// Waits until all threads have ended; `false` if that takes longer.
    pub(crate) fn wait_for_threads(&self, limit: Duration) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, limit, |state| state.threads > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.threads == 0
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn retry_deadline(state: &State, retry: Retry) -> Option<Instant> {
    match (retry, &state.outage) {
        (Retry::For(limit), Some(outage)) if !outage.is_expired => outage.since.checked_add(limit),
        _ => None,
    }
}
