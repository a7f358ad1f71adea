//! What is over may still write: waiting until it does not.
//!
//! A server that has received a write carries it out sooner or later, whether the connection over
//! which it came still exists or not. If the same write is sent again over another connection, is
//! answered there, and is followed by a newer one to the same place, then the old one could come
//! last and undo it. So nothing is sent over a new connection before the server has closed the old
//! one; a server that has closed a connection has carried out what came over it, or never will.
//! That holds for connections that this process has lost, and for those of a predecessor that died.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_backend::chain;
use nix::sys::socket::{Shutdown, shutdown};

use crate::dial::Cause;
use crate::fence::{self, Fence};
use crate::job::Job;
use crate::options::{CONNECTION, SERVER};
use crate::remote::Shared;

/// How often to see whether there is still a reason to wait.
const INTERVAL: Duration = Duration::from_secs(1);

/// A descriptor that a predecessor had its [custodian](crate::Custodian) keep, and its name.
pub type Left = (String, OwnedFd);

impl Shared {
    /// Makes sure that nothing of what a predecessor has sent is carried out from now on.
    pub(crate) fn fence_predecessor(&self, left: Vec<Left>) {
        let (servers, connections): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|(name, _)| name == SERVER);
        let connections = connections.into_iter().filter(|(name, _)| name.starts_with(CONNECTION));
        let connections: Vec<_> = connections.map(|(_, connection)| connection).collect();
        // All of them can finish at the same time.
        for connection in &connections {
            // One that has ended by itself is as good.
            let _ = shutdown(connection.as_raw_fd(), Shutdown::Write);
        }
        for (_, server) in servers {
            self.await_death(&server);
        }
        for connection in connections {
            self.await_close(connection.as_fd(), Vec::new());
        }
    }

    /// Ends a program that a predecessor had started.
    fn await_death(&self, server: &OwnedFd) {
        let mut is_told = false;
        while !self.roster.is_closing() {
            let fenced = server
                .try_clone()
                .and_then(|server| fence::fence_child(server, self.options.fence_limit));
            match fenced {
                Ok(Fence::Closed | Fence::OutOfReach) => return,
                Ok(Fence::Open) => {}
                Err(error) => {
                    return self.note(&format!("cannot end the predecessor's program: {error}"));
                }
            }
            if !std::mem::replace(&mut is_told, true) {
                self.note(&chain(&Cause::Immortal));
            }
            self.expire();
        }
    }

    /// Waits until the server is through with an old connection. Returns those of its jobs that
    /// are to be carried out over another one: all, unless their time is up before.
    pub(crate) fn await_close(
        &self,
        connection: BorrowedFd<'_>,
        mut jobs: Vec<Arc<Job>>,
    ) -> Vec<Arc<Job>> {
        let began = Instant::now();
        let mut is_told = false;
        loop {
            let now = Instant::now();
            let end = self
                .roster
                .patience_ends()
                .map_or(now + INTERVAL, |patience| patience.min(now + INTERVAL).max(now));
            match fence::drain(connection, Some(end)) {
                Ok(Fence::Closed) => return jobs,
                Ok(Fence::Open) => {}
                Ok(Fence::OutOfReach) => {
                    self.note(
                        "the server's machine does not answer any more: what it had been sent \
                         over the old connection, it may still carry out",
                    );
                    return jobs;
                }
                Err(error) => {
                    self.note(&format!("cannot fence the old connection: {error}"));
                    return jobs;
                }
            }
            if self.roster.is_closing() {
                return jobs;
            }
            if let Some(count) = self.roster.expire() {
                self.tell_expired(count + jobs.len());
                for job in jobs.drain(..) {
                    job.reset();
                    job.give_up();
                }
            }
            if began.elapsed() >= self.options.fence_limit && !is_told {
                is_told = true;
                self.note(
                    "the server has not closed the old connection and may still carry out what \
                     came over it, so requests wait until it has; ending the server helps",
                );
            }
        }
    }

    /// Fails what has waited for long enough.
    pub(crate) fn expire(&self) {
        if let Some(count) = self.roster.expire() {
            self.tell_expired(count);
        }
    }

    fn tell_expired(&self, count: usize) {
        self.note(&format!(
            "gave up waiting: {count} requests, and all that come until the server is back, fail \
             with EIO"
        ));
    }
}
