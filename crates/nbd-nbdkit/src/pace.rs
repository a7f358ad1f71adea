//! Whether calls of a plugin are quick, as they have been of late.
//!
//! The thread that receives requests makes quick calls itself: a worker and the way back would take longer
//! than the call. But nothing else of that client is received meanwhile. So calls that wait for something
//! (a disk, a server, a process) are left to workers, which wait for several at once.

use std::sync::atomic::{AtomicU32, Ordering};

use nbd_backend::now;
use nix::sys::resource::{UsageWho, getrusage};

/// A call that takes longer than this, in nanoseconds, is slow even if it does not wait: others should
/// be computed on other processors meanwhile. Far more than a call that copies a block takes, because
/// an emulated or crowded machine is ten times slower.
const SLOW_NANOS: u64 = 500_000;
/// So many of the last 32 calls may have been slow: where others want the processor, any call is now
/// and then.
const MAX_SLOW: u32 = 8;
/// While calls are quick, one in so many is asked whether it waited: that takes two system calls.
const SAMPLE_INTERVAL: u32 = 16;
/// So many of the last 32 calls that were asked may have waited.
const MAX_WAITED: u32 = 2;
/// A call that takes longer than this, in nanoseconds, has waited for something, or the machine stood
/// still.
const LONG_NANOS: u64 = 1_000_000;
/// So many calls after a long one are all asked, to find out which it is.
const WATCHED_CALLS: u32 = 64;
/// So many calls are left to workers after a long one among those did wait.
const REST_CALLS: u32 = 256;

/// The recent past of calls of one kind. Threads race for it, but what is lost then is only a guess.
#[derive(Debug)]
pub(crate) struct Pace {
    /// A bit for each of the last 32 calls: whether it was slow.
    slow: AtomicU32,
    /// A bit for each of the last 32 calls that were asked: whether it waited.
    waited: AtomicU32,
    /// Calls so far.
    calls: AtomicU32,
    /// Calls that are still to be asked.
    watched: AtomicU32,
    /// Calls that are still left to workers.
    resting: AtomicU32,
    /// Whether calls that wait could wait at the same time.
    is_parallel: bool,
}

impl Pace {
    /// Nothing is known yet, so calls are slow. Where they cannot wait at the same time, waiting makes
    /// no difference.
    pub(crate) fn new(is_parallel: bool) -> Self {
        Self {
            slow: AtomicU32::new(u32::MAX),
            waited: AtomicU32::new(if is_parallel { u32::MAX } else { 0 }),
            calls: AtomicU32::new(0),
            watched: AtomicU32::new(0),
            resting: AtomicU32::new(0),
            is_parallel,
        }
    }

    /// Whether the next call is likely to be quick.
    pub(crate) fn is_quick(&self) -> bool {
        self.resting.load(Ordering::Relaxed) == 0
            && self.slow.load(Ordering::Relaxed).count_ones() <= MAX_SLOW
            && self.waited.load(Ordering::Relaxed).count_ones() <= MAX_WAITED
    }

    /// Makes a call, and learns from it.
    pub(crate) fn call<T>(&self, function: impl FnOnce() -> T) -> T {
        let before = self.is_to_ask().then(waits_of_this_thread);
        let begun = now();
        let result = function();
        let nanos = now().saturating_sub(begun);
        let waited = before.map(|before| waits_of_this_thread() != before);
        self.learn(nanos, waited);
        result
    }

    fn is_to_ask(&self) -> bool {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let is_watched = || self.watched.load(Ordering::Relaxed) > 0;
        self.is_parallel
            && (call.is_multiple_of(SAMPLE_INTERVAL) || is_watched() || !self.is_quick())
    }

    /// A call took so long, and waited or did not, if it was asked.
    fn learn(&self, nanos: u64, waited: Option<bool>) {
        push(&self.slow, nanos > SLOW_NANOS);
        count_down(&self.resting);
        let was_watched = count_down(&self.watched);
        if let Some(waited) = waited {
            push(&self.waited, waited);
        }
        if self.is_parallel && nanos > LONG_NANOS {
            self.watched.store(WATCHED_CALLS, Ordering::Relaxed);
            if was_watched && waited == Some(true) {
                self.resting.store(REST_CALLS, Ordering::Relaxed);
            }
        }
    }
}

/// Adds a bit to a history.
fn push(history: &AtomicU32, bit: bool) {
    let bits = history.load(Ordering::Relaxed);
    history.store(bits << 1 | u32::from(bit), Ordering::Relaxed);
}

/// Counts down to 0; whether it was more. A store for each call would make threads wait for each other.
fn count_down(count: &AtomicU32) -> bool {
    let left = count.load(Ordering::Relaxed);
    if left > 0 {
        count.store(left - 1, Ordering::Relaxed);
    }
    left > 0
}

/// How often this thread has gone to sleep. Being preempted does not count.
fn waits_of_this_thread() -> i64 {
    // It cannot fail; if it did, no call would wait.
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const QUICK: u64 = 10_000;

    fn quick_pace() -> Pace {
        let pace = Pace::new(true);
        assert!(!pace.is_quick(), "nothing is known yet");
        (0..32).for_each(|_| pace.learn(QUICK, Some(false)));
        assert!(pace.is_quick());
        pace
    }

    #[test]
    fn calls_are_slow_if_many_of_them_are() {
        let pace = quick_pace();
        (0..MAX_SLOW).for_each(|_| pace.learn(SLOW_NANOS * 2, None));
        assert!(pace.is_quick());
        pace.learn(SLOW_NANOS * 2, None);
        assert!(!pace.is_quick());
        (0..32).for_each(|_| pace.learn(QUICK, Some(false)));
        assert!(pace.is_quick());
    }

    #[test]
    fn a_machine_that_stands_still_makes_no_call_slow() {
        let pace = quick_pace();
        for _ in 0..4 {
            pace.learn(u64::MAX, Some(false));
            (0..8).for_each(|_| pace.learn(QUICK, Some(false)));
        }
        assert!(pace.is_quick());
    }

    #[test]
    fn long_waits_leave_calls_to_workers_for_a_while() {
        let pace = quick_pace();
        pace.learn(LONG_NANOS * 5, None);
        assert!(pace.is_quick() && pace.is_to_ask(), "the next ones are asked");
        pace.learn(QUICK, Some(false));
        pace.learn(LONG_NANOS * 5, Some(true));
        assert!(!pace.is_quick());
        (0..REST_CALLS).for_each(|_| pace.learn(QUICK, Some(false)));
        assert!(pace.is_quick());
    }

    #[test]
    fn calls_that_wait_are_not_quick_if_they_could_wait_together() {
        for is_parallel in [true, false] {
            let pace = Pace::new(is_parallel);
            for _ in 0..40 {
                pace.call(|| std::thread::sleep(Duration::from_nanos(1)));
                // Whatever it took, on a busy machine.
                pace.slow.store(0, Ordering::Relaxed);
                pace.resting.store(0, Ordering::Relaxed);
            }
            assert_eq!(pace.is_quick(), !is_parallel);
        }
    }

    #[test]
    fn being_called_is_no_wait() {
        let pace = Pace::new(true);
        (0..40).for_each(|_| pace.call(|| ()));
        // Not none: the kernel may have to wait for memory.
        assert!(pace.waited.load(Ordering::Relaxed).count_ones() <= MAX_WAITED);
    }
}
