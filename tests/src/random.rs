//! Numbers that are random enough for tests.

use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};

/// xorshift64*.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// The same numbers for the same `NBD_SOAK_SEED`, without one other numbers each time.
    #[must_use]
    pub fn from_environment() -> Self {
        std::env::var("NBD_SOAK_SEED").map_or_else(
            |_| Self::by_clock(),
            |seed| Self::seeded(seed.parse().expect("NBD_SOAK_SEED is a number")),
        )
    }

    /// Other numbers each time.
    #[must_use]
    pub fn by_clock() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::seeded(now.map_or(1, |now| now.as_nanos() as u64))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number within a range.
    pub fn within(&mut self, range: &RangeInclusive<u64>) -> u64 {
        range.start() + self.number() % (range.end() - range.start() + 1)
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.number().to_le_bytes());
        words.flatten().take(count).collect()
    }
}
