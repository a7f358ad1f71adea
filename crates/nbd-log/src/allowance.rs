//! A token bucket: how much may pass at once, and how much a second after that.

use std::time::Instant;

/// What may still pass. Time is a parameter, so nothing in here asks a clock.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    per_second: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    /// A full bucket: `burst` may pass at once, then `per_second`.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { per_second: per_second.into(), burst, left: burst, at: now }
    }

    /// Takes `amount` if there is as much.
    pub fn take(&mut self, amount: usize, now: Instant) -> bool {
        let amount = amount as f64;
        let passes = amount <= self.left_at(now);
        if passes {
            self.left -= amount;
        }
        passes
    }

    /// What may pass at this moment.
    pub fn left_at(&mut self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + elapsed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
        self.left
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_so_much_a_second() {
        let begin = Instant::now();
        let mut bucket = Allowance::new(10, 100, begin);
        assert_eq!((0..200).filter(|_| bucket.take(1, begin)).count(), 100);
        let later = begin + Duration::from_secs(2);
        assert_eq!((0..200).filter(|_| bucket.take(1, later)).count(), 20);
        let much_later = begin + Duration::from_secs(3600);
        assert!(!bucket.take(101, much_later), "a bucket does not overflow");
        assert!(bucket.take(100, much_later));
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing() {
        let begin = Instant::now();
        let mut bucket = Allowance::new(1000, 1, begin + Duration::from_secs(1));
        assert!(bucket.take(1, begin) && !bucket.take(1, begin));
    }
}
