//! Crash points: places between two commits at which a test may kill the process.

#[cfg(feature = "crash-points")]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "crash-points")]
static PASSED: AtomicU64 = AtomicU64::new(0);
#[cfg(feature = "crash-points")]
static FATAL: AtomicU64 = AtomicU64::new(0);

/// Kills this process with SIGKILL when it passes its `nth` crash point from now (1 is the next).
#[cfg(feature = "crash-points")]
pub fn arm_crash_point(nth: u64) {
    PASSED.store(0, Ordering::SeqCst);
    FATAL.store(nth, Ordering::SeqCst);
}

/// How many crash points were passed since [`arm_crash_point`].
#[cfg(feature = "crash-points")]
pub fn crash_points_passed() -> u64 {
    PASSED.load(Ordering::SeqCst)
}

/// A point at which a crash must be survivable. Costs nothing unless built for tests.
#[inline(always)]
pub(crate) fn crash_point() {
    #[cfg(feature = "crash-points")]
    {
        let fatal = FATAL.load(Ordering::Relaxed);
        if fatal != 0 && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == fatal {
            crate::message::die();
        }
    }
}
