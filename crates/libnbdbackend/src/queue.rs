//! Queues: where requests of asynchronous devices wait until the program takes them.
//!
//! A descriptor is readable while something waits, so an event loop can poll it. It is an eventfd, which
//! is written to when the queue stops being empty and read when it becomes so: two system calls for a
//! batch, not for a request.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::context::Context;
use crate::error::{Failure, Outcome};

/// What waits in a queue.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A request, or an event that must be completed.
    Request(u64),
    /// The device is served, with so many requests of a predecessor.
    Serving(u32),
    /// It is served no more, because of this errno or 0.
    Ended(c_int),
}

/// An entry and the device that it is of.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) device: c_int,
    pub(crate) context: Context,
    pub(crate) entry: Entry,
}

/// The queue of one event loop.
#[derive(Debug)]
pub(crate) struct Queue {
    entries: Mutex<VecDeque<Waiting>>,
    ready: EventFd,
    /// Devices that are started with it and have not ended. Not the count of references: the thread of
    /// a device that has told of its end may still have one.
    devices: AtomicUsize,
}

static QUEUES: LazyLock<RwLock<HashMap<c_int, Arc<Queue>>>> = LazyLock::new(RwLock::default);
/// Never given twice, so that a number that was closed is an error and not another queue.
static NEXT: AtomicI32 = AtomicI32::new(1);

impl Queue {
    fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self { entries: Mutex::default(), ready, devices: AtomicUsize::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor to poll.
    pub(crate) fn descriptor(&self) -> c_int {
        self.ready.as_fd().as_raw_fd()
    }

    /// A device that was started with it has ended.
    pub(crate) fn release(&self) {
        self.devices.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn push(&self, waiting: Waiting) {
        let mut entries = self.lock();
        let was_empty = entries.is_empty();
        entries.push_back(waiting);
        if was_empty {
            // Cannot fail: the count is 0 or 1.
            let _ = self.ready.write(1);
        }
    }

    /// Removes up to `count` entries, the oldest first.
    pub(crate) fn take(&self, count: usize) -> Vec<Waiting> {
        let mut entries = self.lock();
        if entries.is_empty() {
            return Vec::new();
        }
        let count = count.min(entries.len());
        let taken = entries.drain(..count).collect();
        if entries.is_empty() {
            // Cannot fail: it is 1 while something waits.
            let _ = self.ready.read();
        }
        taken
    }
}

/// Makes a queue.
pub(crate) fn open() -> Outcome<c_int> {
    let queue =
        Queue::new().map_err(|errno| Failure::io("cannot make an eventfd", &errno.into()))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut queues = QUEUES.write().unwrap_or_else(PoisonError::into_inner);
    queues.insert(number, Arc::new(queue));
    Ok(number)
}

/// A queue by its number.
pub(crate) fn get(number: c_int) -> Outcome<Arc<Queue>> {
    let queues = QUEUES.read().unwrap_or_else(PoisonError::into_inner);
    queues.get(&number).cloned().ok_or_else(|| Failure::new(libc::EBADF, unknown(number)))
}

/// A queue for a device that is started with it, which must [release](Queue::release) it.
pub(crate) fn acquire(number: c_int) -> Outcome<Arc<Queue>> {
    // Counted while the table is locked, so that it is not closed in between.
    let queues = QUEUES.read().unwrap_or_else(PoisonError::into_inner);
    let queue = queues.get(&number).ok_or_else(|| Failure::new(libc::EBADF, unknown(number)))?;
    queue.devices.fetch_add(1, Ordering::AcqRel);
    Ok(Arc::clone(queue))
}

/// Ends a queue that no device uses.
pub(crate) fn close(number: c_int) -> Outcome<()> {
    let mut queues = QUEUES.write().unwrap_or_else(PoisonError::into_inner);
    let queue = queues.get(&number).ok_or_else(|| Failure::new(libc::EBADF, unknown(number)))?;
    // None can acquire it while the table is locked.
    if queue.devices.load(Ordering::Acquire) > 0 {
        let message = format!("queue {number} is in use: its devices have not ended");
        return Err(Failure::new(libc::EBUSY, message));
    }
    queues.remove(&number);
    Ok(())
}

fn unknown(number: c_int) -> String {
    format!("there is no queue {number}: was it closed?")
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn waiting(number: u32) -> Waiting {
        let context = Context(std::ptr::null_mut());
        Waiting { device: 1, context, entry: Entry::Serving(number) }
    }

    fn is_readable(queue: &Queue) -> bool {
        let mut fds = [PollFd::new(queue.ready.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn the_descriptor_is_readable_while_something_waits() {
        let queue = Queue::new().unwrap();
        assert!(!is_readable(&queue));
        assert!(queue.take(5).is_empty());
        for number in 0..3 {
            queue.push(waiting(number));
        }
        assert!(is_readable(&queue));
        assert_eq!(queue.take(2).len(), 2);
        assert!(is_readable(&queue));
        assert!(matches!(queue.take(2)[..], [Waiting { entry: Entry::Serving(2), .. }]));
        assert!(!is_readable(&queue));
    }

    #[test]
    fn a_queue_that_is_used_or_closed_cannot_be_closed() {
        let number = open().unwrap();
        let used = acquire(number).unwrap();
        assert_eq!(close(number).unwrap_err().errno, libc::EBUSY);
        // The reference that is left is no use.
        used.release();
        close(number).unwrap();
        assert_eq!(close(number).unwrap_err().errno, libc::EBADF);
        assert_eq!(get(number).unwrap_err().errno, libc::EBADF);
        assert_ne!(open().unwrap(), number);
    }
}
