//! Sending. No thread holds the lock while it waits for the client to read.

use std::os::fd::AsFd;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use nbd_backend::Dispatcher;
use nbd_net::liveness;

use super::shared::{Connection, SendState};
use crate::limits::Limits;

impl Connection {
    /// Sends what is staged. If the socket is full, releases the lock, waits until all is sent, and
    /// takes the lock again: the state may have changed when this returns.
    ///
    /// Submits what is queued before such a wait: its memory would else be held for as long as the
    /// client reads nothing.
    pub(super) fn send<'a>(
        &'a self,
        mut guard: MutexGuard<'a, SendState>,
        dispatcher: &mut Dispatcher<'_>,
    ) -> MutexGuard<'a, SendState> {
        if guard.send_buffer.is_draining {
            drop(guard);
            dispatcher.submit_queued();
            return self.wait_until(|send_buffer| !send_buffer.is_draining);
        }
        if guard.send_buffer.send().is_ok() {
            return guard;
        }
        guard.send_buffer.is_draining = true;
        drop(guard);
        dispatcher.submit_queued();
        self.drain();
        self.lock()
    }

    /// Sends whenever the socket has room, until nothing is left. Only the thread that set
    /// `is_draining` may call this: two would mix up the order of the bytes.
    pub(super) fn drain(&self) {
        loop {
            let begun = Instant::now();
            let is_taking = self.wait_for_reader();
            let mut guard = self.lock();
            let is_slow = guard.send_buffer.has_waited(begun.elapsed(), self.limits.stall);
            if !is_taking {
                guard.send_buffer.hang_up();
            } else if is_slow && self.memory.has_waiters() {
                let peer = self.socket.peer();
                tracing::warn!(
                    "{peer}: read replies too slowly, while others waited for the memory"
                );
                guard.send_buffer.hang_up();
            }
            if guard.send_buffer.send().is_ok() {
                return self.drained(guard);
            }
        }
    }

    /// Ends draining: nothing is left to send.
    fn drained(&self, mut guard: MutexGuard<'_, SendState>) {
        guard.send_buffer.is_draining = false;
        if guard.has_waiter {
            self.changed.notify_all();
        }
    }

    /// Waits until the socket has room. Logs why and returns `false` if a timeout has passed.
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
            if let Some(why) = self.timeout_reason(begun.elapsed()) {
                tracing::warn!("{}: {why}", self.socket.peer());
                return false;
            }
        }
    }

    /// The reason to disconnect a client that has read nothing for so long, if a timeout has
    /// passed.
    fn timeout_reason(&self, waited: Duration) -> Option<&'static str> {
        let limits = &self.limits;
        if liveness::is_gone(self.socket.as_fd(), limits.vanished) {
            return Some("left replies unread, and its machine does not answer");
        }
        if limits.idle.is_some_and(|idle| waited >= idle) {
            return Some("left replies unread for too long");
        }
        let is_blocking_others = waited >= limits.stall && self.memory.has_waiters();
        (is_blocking_others && self.lock().send_buffer.holds_memory())
            .then_some("left replies unread for too long, while others waited for the memory")
    }
}

/// Sends what is left on a new thread.
pub(super) fn spawn_drain(connection: Arc<Connection>) {
    let failing = Arc::clone(&connection);
    let thread = std::thread::Builder::new().name("drain".into()).spawn(move || connection.drain());
    if let Err(error) = thread {
        tracing::error!("{}: dropped: cannot start a thread: {error}", failing.socket.peer());
        let mut guard = failing.lock();
        guard.send_buffer.hang_up();
        failing.drained(guard);
    }
}
