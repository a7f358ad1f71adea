//! Sending: never under the lock where that means to wait for the client.

use std::os::fd::AsFd;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use nbd_net::liveness;

use super::{Connection, SharedOutbox};
use crate::limits::Limits;

impl Connection {
    /// Sends what is staged. If the client does not take all of it, waits until it does, without
    /// the lock; so it must not be needed before this returns.
    pub(super) fn send<'a>(
        &'a self,
        mut guard: MutexGuard<'a, SharedOutbox>,
    ) -> MutexGuard<'a, SharedOutbox> {
        if guard.outbox.is_draining {
            drop(guard);
            return self.wait_until(|outbox| !outbox.is_draining);
        }
        if guard.outbox.send().is_ok() {
            return guard;
        }
        guard.outbox.is_draining = true;
        drop(guard);
        self.drain();
        self.lock()
    }

    /// Sends whenever the client takes something, until nothing is left.
    pub(super) fn drain(&self) {
        loop {
            let begun = Instant::now();
            let is_taking = self.wait_for_reader();
            let mut guard = self.lock();
            let is_slow = guard.outbox.has_waited(begun.elapsed(), self.limits.stall);
            if !is_taking {
                guard.outbox.hang_up();
            } else if is_slow && self.memory.is_wanted() {
                let peer = self.socket.peer();
                tracing::warn!(
                    "{peer}: read replies too slowly, while others waited for the memory"
                );
                guard.outbox.hang_up();
            }
            if guard.outbox.send().is_ok() {
                return self.drained(guard);
            }
        }
    }

    /// Nothing is left to be sent.
    fn drained(&self, mut guard: MutexGuard<'_, SharedOutbox>) {
        guard.outbox.is_draining = false;
        if guard.is_awaited {
            self.changed.notify_all();
        }
    }

    /// Waits for the client to take something. `false` if it is not to be waited for any longer, and
    /// says why.
    fn wait_for_reader(&self) -> bool {
        let begun = Instant::now();
        let Limits { idle, stall, vanished, .. } = self.limits;
        let interval = idle.unwrap_or(stall).min(stall).min(vanished).min(liveness::INTERVAL);
        loop {
            match self.socket.wait_writable(Some(interval)) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!("{}: cannot wait for it: {error}", self.socket.peer());
                    return false;
                }
            }
            if let Some(why) = self.given_up(begun.elapsed()) {
                tracing::warn!("{}: {why}", self.socket.peer());
                return false;
            }
        }
    }

    /// Why a client that has taken nothing for so long is not to be waited for any longer.
    fn given_up(&self, waited: Duration) -> Option<&'static str> {
        let limits = &self.limits;
        if liveness::is_gone(self.socket.as_fd(), limits.vanished) {
            return Some("left replies unread, and its machine does not answer any more");
        }
        if limits.idle.is_some_and(|idle| waited >= idle) {
            return Some("left replies unread for too long");
        }
        let is_in_the_way = waited >= limits.stall && self.memory.is_wanted();
        (is_in_the_way && self.lock().outbox.holds_memory())
            .then_some("left replies unread for too long, while others waited for the memory")
    }
}

/// Sends what is left on a thread of its own.
pub(super) fn drain_aside(connection: Arc<Connection>) {
    let failing = Arc::clone(&connection);
    let thread = std::thread::Builder::new().name("drain".into()).spawn(move || connection.drain());
    if let Err(error) = thread {
        tracing::error!("{}: dropped: cannot start a thread: {error}", failing.socket.peer());
        let mut guard = failing.lock();
        guard.outbox.hang_up();
        failing.drained(guard);
    }
}
