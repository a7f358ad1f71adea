//! Whether writes to the page cache are as fast as they should be.
//!
//! Usually such a write is a copy, and the way to a worker and back would cost more than that.
//! But when too much is dirty, the kernel makes the writer wait for the disk, and then the other
//! requests of the lane would wait as well.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A write that takes longer than this has waited for something.
const SLOW: Duration = Duration::from_millis(2);
/// How many writes are then left to workers before the lane's own thread dares again.
const CAUTION: u32 = 64;

/// The recent past. Threads race for it, but what is lost then is only a guess.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    caution: AtomicU32,
}

impl Pace {
    /// Asked before a write: is it likely to be fast?
    pub(crate) fn is_fast(&self) -> bool {
        let caution = self.caution.load(Ordering::Relaxed);
        if caution == 0 {
            return true;
        }
        self.caution.store(caution - 1, Ordering::Relaxed);
        false
    }

    /// Told after a write.
    pub(crate) fn took(&self, time: Duration) {
        if time > SLOW {
            self.caution.store(CAUTION, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_write_sends_the_next_ones_to_workers_until_they_are_fast() {
        let pace = Pace::default();
        assert!(pace.is_fast());
        pace.took(Duration::from_micros(10));
        assert!(pace.is_fast());
        pace.took(SLOW * 2);
        for _ in 0..CAUTION {
            assert!(!pace.is_fast());
            pace.took(Duration::from_micros(10));
        }
        assert!(pace.is_fast());
    }
}
