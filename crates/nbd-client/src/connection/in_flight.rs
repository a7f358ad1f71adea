//! The requests that a server has not answered, by cookie.

use std::sync::Arc;

use nbd_proto::Command;

use crate::job::Job;
use crate::reply::Reply;

/// A request that was not answered, or not in full.
pub(crate) struct Pending {
    pub(crate) cookie: u64,
    pub(crate) job: Arc<Job>,
    pub(crate) command: Command,
    /// Where in the job's range it begins.
    pub(crate) at: u64,
    pub(crate) reply: Reply,
}

enum Slot {
    Free,
    /// The receiving thread reads the reply.
    Taken,
    Full(Pending),
}

/// The requests in flight of one connection.
///
/// A cookie is the number of a slot and, above it, a count of all cookies: so no two requests of
/// a connection have the same one, and a reply that comes twice finds nothing.
#[derive(Default)]
pub(crate) struct InFlightTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    count: u32,
    is_closed: bool,
}

impl InFlightTable {
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Registers a request and returns its cookie.
    pub(crate) fn insert(&mut self, job: Arc<Job>, command: Command, at: u64) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            (self.slots.len() - 1) as u32
        });
        self.count = self.count.wrapping_add(1);
        let cookie = u64::from(self.count) << 32 | u64::from(slot);
        let reply = Reply::to(command);
        self.slots[slot as usize] = Slot::Full(Pending { cookie, job, command, at, reply });
        cookie
    }

    /// Takes out the request of this cookie, to be [put back](Self::put_back) or
    /// [removed](Self::remove).
    pub(crate) fn take(&mut self, cookie: u64) -> Option<Pending> {
        let slot = self.slots.get_mut(index(cookie))?;
        match std::mem::replace(slot, Slot::Taken) {
            Slot::Full(pending) if pending.cookie == cookie => Some(pending),
            other => {
                *slot = other;
                None
            }
        }
    }

    pub(crate) fn put_back(&mut self, pending: Pending) {
        let index = index(pending.cookie);
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Slot::Full(pending);
        }
    }

    /// Forgets a request that was taken out.
    pub(crate) fn remove(&mut self, cookie: u64) {
        if let Some(slot) = self.slots.get_mut(index(cookie)) {
            *slot = Slot::Free;
            self.free.push(index(cookie) as u32);
        }
    }

    /// Gives out what is left, in the order in which it came, and admits no more.
    pub(crate) fn close(&mut self) -> Vec<Arc<Job>> {
        self.is_closed = true;
        let slots = self.slots.drain(..);
        let mut jobs: Vec<_> = slots
            .filter_map(|slot| match slot {
                Slot::Full(pending) => Some(pending.job),
                Slot::Free | Slot::Taken => None,
            })
            .collect();
        jobs.sort_by_key(|job| job.id);
        jobs.dedup_by_key(|job| job.id);
        jobs
    }
}

fn index(cookie: u64) -> usize {
    (cookie & u64::from(u32::MAX)) as usize
}
