//! Sending: never under the lock where that means to wait for the client.

use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use super::{Connection, SharedOutbox};

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
            let is_taking = self.wait_for_reader();
            let mut guard = self.lock();
            if !is_taking {
                self.socket.shutdown();
            }
            if guard.outbox.send().is_ok() {
                guard.outbox.is_draining = false;
                if guard.is_awaited {
                    self.changed.notify_all();
                }
                return;
            }
        }
    }

    /// Waits for the client to take something. `false` if it did not for longer than it may be
    /// silent, or has had its time while others wait for memory.
    fn wait_for_reader(&self) -> bool {
        let idle = self.limits.idle.and_then(|idle| Instant::now().checked_add(idle));
        loop {
            let left = idle.map(|idle| idle.saturating_duration_since(Instant::now()));
            let limit = left.map_or(self.limits.stall, |left| left.min(self.limits.stall));
            match self.socket.wait_writable(Some(limit)) {
                Ok(false) if left.is_some_and(|left| left <= limit) => return false,
                Ok(false) if self.memory.is_wanted() && self.lock().outbox.holds_memory() => {
                    let peer = self.socket.peer();
                    tracing::warn!(
                        "{peer}: left replies unread for too long, while others waited \
                         for the memory"
                    );
                    return false;
                }
                Ok(false) => {}
                other => return other.is_ok(),
            }
        }
    }
}

/// Sends what is left on a thread of its own.
pub(super) fn drain_aside(connection: Arc<Connection>) {
    let failing = Arc::clone(&connection);
    let thread = std::thread::Builder::new().name("drain".into()).spawn(move || connection.drain());
    if let Err(error) = thread {
        tracing::error!("{}: dropped: cannot start a thread: {error}", failing.socket.peer());
        failing.socket.shutdown();
        failing.drain();
    }
}
