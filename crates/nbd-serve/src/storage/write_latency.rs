//! Whether writes to the page cache are as fast as they should be.
//!
//! Usually such a write is a copy, and the way to a worker and back would cost more than that.
//! But when too much is dirty, the kernel makes the writer wait for the disk, and then the other
//! requests of the lane would wait as well.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A write that takes longer than this has waited for something.
const SLOW_WRITE: Duration = Duration::from_millis(2);
/// How many writes are then left to workers before the lane's own thread dares again.
const WRITES_AFTER_SLOW: u32 = 64;

/// The recent past. Threads race for it, but what is lost then is only a guess.
#[derive(Debug, Default)]
pub(crate) struct WriteLatency {
    left_to_workers: AtomicU32,
}

impl WriteLatency {
    /// Asked before a write: is it likely to be fast?
    pub(crate) fn is_fast(&self) -> bool {
        let left_to_workers = self.left_to_workers.load(Ordering::Relaxed);
        if left_to_workers == 0 {
            return true;
        }
        self.left_to_workers.store(left_to_workers - 1, Ordering::Relaxed);
        false
    }

    /// Told after a write.
    pub(crate) fn took(&self, time: Duration) {
        if time > SLOW_WRITE {
            self.left_to_workers.store(WRITES_AFTER_SLOW, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_write_sends_the_next_ones_to_workers_until_they_are_fast() {
        let write_latency = WriteLatency::default();
        assert!(write_latency.is_fast());
        write_latency.took(Duration::from_micros(10));
        assert!(write_latency.is_fast());
        write_latency.took(SLOW_WRITE * 2);
        for _ in 0..WRITES_AFTER_SLOW {
            assert!(!write_latency.is_fast());
            write_latency.took(Duration::from_micros(10));
        }
        assert!(write_latency.is_fast());
    }
}
