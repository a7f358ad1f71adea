//! Which connections there are, and what waits for one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbd_net::uri::Retry;

use crate::connection::Connection;
use crate::job::Job;
use crate::lock;

/// Most different complaints that are printed while nobody is connected.
const COMPLAINTS: usize = 8;

/// The connections of a client.
pub(crate) struct Roster {
    state: Mutex<State>,
    changed: Condvar,
    retry: Retry,
}

struct State {
    up: Vec<Arc<Connection>>,
    /// Whose turn it is.
    turn: usize,
    waiting: VecDeque<Arc<Job>>,
    /// Since nobody is connected.
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

/// How things are after a connection has come or gone.
pub(crate) enum Change {
    /// There are others.
    None,
    /// The last one has gone; so many requests wait in addition to its own.
    Out { waiting: usize },
    /// It is the first one after such a time.
    Back { after: Duration, is_first: bool },
}

impl Roster {
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
                return job.give_up();
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
                // It has just left the roster.
                Err(refused) => job = refused,
            }
        }
    }

    /// A connection may be used from now on. Returns what has waited for it, oldest first.
    pub(crate) fn join(
        &self,
        connection: &Arc<Connection>,
        is_first: bool,
    ) -> (Vec<Arc<Job>>, Change) {
        let mut state = lock(&self.state);
        if is_first {
            state.epoch += 1;
            state.is_multi = connection.terms.is_multi;
        }
        state.up.push(Arc::clone(connection));
        let mut jobs: Vec<_> = state.waiting.drain(..).collect();
        jobs.sort_by_key(|job| job.id);
        let change = match state.outage.take() {
            None => Change::None,
            Some(outage) => {
                Change::Back { after: outage.since.elapsed(), is_first: outage.is_first }
            }
        };
        drop(state);
        self.changed.notify_all();
        (jobs, change)
    }

    /// A connection must not be used any more.
    pub(crate) fn leave(&self, connection: &Arc<Connection>) -> Change {
        let mut state = lock(&self.state);
        state.up.retain(|other| !Arc::ptr_eq(other, connection));
        if !state.up.is_empty() || state.outage.is_some() {
            return Change::None;
        }
        let since = Instant::now();
        let told = Vec::new();
        state.outage = Some(Outage { since, is_first: false, is_expired: false, told });
        Change::Out { waiting: state.waiting.len() }
    }

    /// Until when requests wait; nothing if they do that forever, or no more.
    pub(crate) fn patience_ends(&self) -> Option<Instant> {
        patience_ends(&lock(&self.state), self.retry)
    }

    /// Fails all that waits if it has waited for long enough. Returns how many requests that were,
    /// the first time.
    pub(crate) fn expire(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        if patience_ends(&state, self.retry).is_none_or(|end| Instant::now() < end) {
            return None;
        }
        let outage = state.outage.as_mut()?;
        outage.is_expired = true;
        let jobs = std::mem::take(&mut state.waiting);
        drop(state);
        for job in &jobs {
            job.give_up();
        }
        Some(jobs.len())
    }

    /// Whether this complaint should be printed: it is new, and requests wait.
    pub(crate) fn is_news(&self, complaint: &str) -> bool {
        let mut state = lock(&self.state);
        let Some(outage) = &mut state.outage else {
            return false;
        };
        if outage.told.len() >= COMPLAINTS || outage.told.iter().any(|told| told == complaint) {
            return false;
        }
        outage.told.push(complaint.into());
        true
    }

    /// Waits for so long, but not beyond the end of patience. `false` if all is over.
    pub(crate) fn sleep(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let end = self.patience_ends().map_or(end, |patience| end.min(patience));
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

fn patience_ends(state: &State, retry: Retry) -> Option<Instant> {
    match (retry, &state.outage) {
        (Retry::For(limit), Some(outage)) if !outage.is_expired => outage.since.checked_add(limit),
        _ => None,
    }
}
