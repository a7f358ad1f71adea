//! When to try again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first pause.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// The longest pause.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The pauses between attempts to connect.
///
/// A pause is twice as long as the one before, unless the connection in between was of use: so a
/// server that lets us in each time, only to break the connection, is not hammered.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        // Several clients of a server that restarts must not come back in step.
        Self::seeded(RandomState::new().hash_one(std::process::id()))
    }

    fn seeded(random: u64) -> Self {
        Self { next: MIN_RETRY_INTERVAL, random: random | 1 }
    }

    /// How long to wait now: from half to all of the pause that is due. `was_useful` says that
    /// something was answered since the last time.
    pub(crate) fn pause(&mut self, was_useful: bool) -> Duration {
        if was_useful {
            self.next = MIN_RETRY_INTERVAL;
        }
        let whole = self.next;
        self.next = (whole * 2).min(MAX_RETRY_INTERVAL);
        whole / 2 + whole.mul_f64(self.fraction()) / 2
    }

    /// A number from 0 to 1 (xorshift64, which is good enough to spread retries).
    fn fraction(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as f64 / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_vary_by_half() {
        let mut backoff = Backoff::seeded(4711);
        for due in [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000] {
            let pause = backoff.pause(false).as_millis();
            assert!((due / 2..=due).contains(&pause), "{pause} instead of {due}");
        }
    }

    #[test]
    fn a_useful_connection_starts_them_anew() {
        let mut backoff = Backoff::seeded(4711);
        for _ in 0..5 {
            backoff.pause(false);
        }
        assert!(backoff.pause(true) <= MIN_RETRY_INTERVAL);
        assert!(backoff.pause(false) <= MIN_RETRY_INTERVAL * 2);
    }
}
