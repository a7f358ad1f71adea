//! Memory for the data of all clients together. Requests beyond the limit queue.
//!
//! Waiting connections are served in the order in which they came, whatever they ask for, so none
//! waits for ever. A connection needs none of this memory for small requests: for those it has
//! buffers of its own.
//!
//! A message that is received takes its memory in steps, as its data comes: a client that sends
//! slowly holds what it has sent, rounded up to a [`STEP`], and not what its header announces. There
//! may be many such clients, each with minutes until its message is complete. So messages of more
//! than one step have half of the memory to themselves, and reads and shorter messages the other
//! half: they never wait for a long message.
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
//! 2. While a message waits for a step, no other long message begins. So there are finitely many
//!    messages with a part, and no stream of new ones overtakes them for ever.
//! 3. By 1 the messages of 2 are completed or disconnected one after the other. Then the queue of
//!    long messages goes on.
//!
//! [`Limits::stall`]: crate::Limits::stall

mod block;
mod cache;
mod pool;
mod steps;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use block::Block;
use cache::BlockCache;
pub(crate) use pool::Grant;
use pool::Pool;
pub(crate) use steps::STEP;

/// The memory, and blocks of it that are kept for later.
pub(crate) struct MemoryBudget {
    limit: usize,
    /// For reads, and for messages that take all of their memory at once.
    short: Arc<Pool>,
    /// For messages that take theirs in steps.
    long: Arc<Pool>,
    cache: Mutex<BlockCache>,
}

impl MemoryBudget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (short, long) = (Pool::new(limit - limit / 2), Pool::new(limit / 2));
        Arc::new(Self { limit, short, long, cache: Mutex::default() })
    }

    /// Takes memory if there is enough and no other connection waits. A request for more than there
    /// is can have all of it.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<Grant> {
        self.short.try_take(bytes)
    }

    /// Takes memory, and waits for it. `None` if the client is gone by then: `is_gone` is asked
    /// from time to time, without a lock of this budget.
    pub(crate) fn take(&self, bytes: u64, is_gone: impl FnMut() -> bool) -> Option<Grant> {
        self.short.take(bytes, is_gone)
    }

    /// Takes the first step of the memory for a message if that is possible at once; see
    /// [`try_take`](Self::try_take).
    pub(crate) fn try_begin(&self, length: u64) -> Option<Grant> {
        self.of_messages(length).try_begin(length)
    }

    /// Takes the first step of the memory for a message, and waits for it; see
    /// [`take`](Self::take).
    pub(crate) fn begin(&self, length: u64, is_gone: impl FnMut() -> bool) -> Option<Grant> {
        self.of_messages(length).begin(length, is_gone)
    }

    /// The memory for messages of this length.
    fn of_messages(&self, length: u64) -> &Arc<Pool> {
        if length > STEP as u64 { &self.long } else { &self.short }
    }

    /// Whether more than half of the memory for messages of this length is used. Then a client gets
    /// some for such a message only after it has sent data.
    pub(crate) fn is_scarce(&self, length: u64) -> bool {
        self.of_messages(length).is_scarce()
    }

    /// Whether a connection waits.
    pub(crate) fn has_waiters(&self) -> bool {
        self.short.lock().has_waiters() || self.long.lock().has_waiters()
    }

    /// Frees the unused blocks.
    pub(crate) fn trim(&self) {
        let unused = std::mem::take(&mut self.cache().unused);
        drop(unused);
    }

    fn cache(&self) -> MutexGuard<'_, BlockCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBudget").field("limit", &self.limit).finish_non_exhaustive()
    }
}
