//! Waits until a server has closed an old connection, or an old server has ended.
//!
//! An old connection may still write; the [crate's documentation](crate#fencing) says why nothing is
//! sent over a new one before that. A server that has closed a connection has executed what came over
//! it, or never will. This module fences the connections that this process has lost, and those of a
//! predecessor that died.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_backend::chain;
use nix::sys::socket::{Shutdown, shutdown};

use crate::connect::error::Cause;
use crate::fence::{self, Fence};
use crate::job::Job;
use crate::options::{CONNECTION_FD_PREFIX, SERVER_FD_NAME};
use crate::shared::Shared;

/// How often to check whether there is still a reason to wait.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Name and descriptor that a predecessor stored in its [`FdStore`](crate::FdStore).
pub type StoredFd = (String, OwnedFd);

impl Shared {
    /// Makes sure that nothing of what a predecessor has sent is carried out from now on.
    pub(crate) fn fence_predecessor(&self, left: Vec<StoredFd>) {
        let (servers, connections): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|(name, _)| name == SERVER_FD_NAME);
        let connections =
            connections.into_iter().filter(|(name, _)| name.starts_with(CONNECTION_FD_PREFIX));
        let connections: Vec<_> = connections.map(|(_, connection)| connection).collect();
        // All of them can finish at the same time.
        for connection in &connections {
            // One that has ended by itself is as good.
            let _ = shutdown(connection.as_raw_fd(), Shutdown::Write);
        }
        for (_, server) in servers {
            self.end_old_server(&server);
        }
        for connection in connections {
            self.await_close(connection.as_fd(), Vec::new());
        }
    }

    /// Ends a program that a predecessor had started.
    fn end_old_server(&self, server: &OwnedFd) {
        let mut is_logged = false;
        while !self.pool.is_closing() {
            let fenced = server
                .try_clone()
                .and_then(|server| fence::fence_child(server, self.options.fence_limit));
            match fenced {
                Ok(Fence::Closed | Fence::OutOfReach) => return,
                Ok(Fence::Open) => {}
                Err(error) => {
                    return self
                        .log_info(&format!("cannot end the predecessor's program: {error}"));
                }
            }
            if !std::mem::replace(&mut is_logged, true) {
                self.log_info(&chain(&Cause::WontExit));
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
        let mut is_logged = false;
        loop {
            let now = Instant::now();
            let end = self.pool.retry_deadline().map_or(now + CHECK_INTERVAL, |deadline| {
                deadline.min(now + CHECK_INTERVAL).max(now)
            });
            match fence::drain(connection, Some(end)) {
                Ok(Fence::Closed) => return jobs,
                Ok(Fence::Open) => {}
                Ok(Fence::OutOfReach) => {
                    self.log_info(
                        "the server's machine does not answer: it may still execute what it received over the old connection",
                    );
                    return jobs;
                }
                Err(error) => {
                    self.log_info(&format!("cannot fence the old connection: {error}"));
                    return jobs;
                }
            }
            if self.pool.is_closing() {
                return jobs;
            }
            if let Some(count) = self.pool.expire() {
                self.log_expired(count + jobs.len());
                for job in jobs.drain(..) {
                    job.reset();
                    job.fail_with_eio();
                }
            }
            if began.elapsed() >= self.options.fence_limit && !is_logged {
                is_logged = true;
                self.log_info(
                    "the server has not closed the old connection, and may still execute requests of it: new requests wait until it is closed. To continue, end the server",
                );
            }
        }
    }

    /// Fails what has waited for long enough.
    pub(crate) fn expire(&self) {
        if let Some(count) = self.pool.expire() {
            self.log_expired(count);
        }
    }

    fn log_expired(&self, count: usize) {
        self.log_info(&format!(
            "the server is gone for too long (retry=): {count} requests, and later ones until it is back, get EIO"
        ));
    }
}
