//! Histograms: how long requests took, counted by backends, for onlookers.
//!
//! Buckets are a quarter of an octave wide, so that a time is known to within a quarter, from a
//! microsecond to almost a minute, with one shift and no division. Nothing is ever concluded from
//! them, so they are not audited: the reader takes any words for what they say.

use std::sync::atomic::{AtomicU64, Ordering};

use nbd_proto::CommandType;

use crate::inspect::Inspector;
use crate::layout::{BUCKETS, Histogram, KINDS, SLOTS};

/// Times below 2 to this power nanoseconds are not told apart.
const SHORTEST: u32 = 10;
/// Buckets of an octave, as a power of two.
const PARTS: u32 = 2;

/// What histograms are kept apart by, in the order in which they lie in the ledger: by the numbers
/// of the commands, of which 2 is never answered and stands for all others.
pub const NAMES: [&str; KINDS] = ["read", "write", "other", "flush"];
const OTHER: u16 = 2;
const KIND_BITS: u32 = KINDS.ilog2();

/// A lane's histogram of one kind, copied; see [`Histogram`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramCopy {
    /// Sum of the times in nanoseconds.
    pub sum: u64,
    /// How many fell into each bucket.
    pub buckets: [u64; BUCKETS],
}

impl Default for HistogramCopy {
    fn default() -> Self {
        Self { sum: 0, buckets: [0; BUCKETS] }
    }
}

impl HistogramCopy {
    /// Adds another lane's.
    pub fn add(&mut self, other: &Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        for (count, more) in self.buckets.iter_mut().zip(other.buckets) {
            *count = count.wrapping_add(more);
        }
    }
}

/// The bucket of a time in nanoseconds.
#[must_use]
pub const fn bucket(nanoseconds: u64) -> usize {
    let time = if nanoseconds < 1 << SHORTEST { 1 << SHORTEST } else { nanoseconds };
    let octave = time.ilog2();
    // Its first bit is always set, and counts as one octave.
    let digits = (time >> (octave - PARTS)) as usize;
    let index = (((octave - SHORTEST) << PARTS) as usize + digits) - (1 << PARTS);
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The shortest time in nanoseconds that falls into a bucket, and the first that no longer does;
/// the last bucket has no end.
#[must_use]
pub const fn bounds(bucket: usize) -> (u64, Option<u64>) {
    let from = if bucket == 0 { 0 } else { begin(bucket) };
    (from, if bucket + 1 < BUCKETS { Some(begin(bucket + 1)) } else { None })
}

const fn begin(bucket: usize) -> u64 {
    let digits = (1 << PARTS) + (bucket as u64 & ((1 << PARTS) - 1));
    digits << (SHORTEST - PARTS + (bucket as u32 >> PARTS))
}

/// Times of one transmission, added to the ledger's histograms just before it is committed: what is
/// executed again after a death must not count twice.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// A time, and the kind in the lowest bits. Each belongs to a slot that is not free, so there
    /// are no more than slots.
    times: Box<[u64; SLOTS as usize]>,
    count: usize,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { times: Box::new([0; SLOTS as usize]), count: 0 }
    }
}

impl Latencies {
    pub(crate) fn add(&mut self, command: CommandType, nanoseconds: u64) {
        let kind = if command.0 <= CommandType::FLUSH.0 { command.0 } else { OTHER };
        // One that is recorded and never staged is the caller's mistake, and only miscounted.
        if let Some(time) = self.times.get_mut(self.count) {
            *time = nanoseconds << KIND_BITS | u64::from(kind);
            self.count += 1;
        }
    }

    pub(crate) fn pour(&mut self, histograms: &[Histogram; KINDS]) {
        for &time in self.times.iter().take(self.count) {
            let histogram = &histograms[time as usize % KINDS];
            let nanoseconds = time >> KIND_BITS;
            add(&histogram.sum, nanoseconds);
            add(&histogram.buckets[bucket(nanoseconds)], 1);
        }
        self.count = 0;
    }
}

/// The transmitter is the only one that stores here, so load and store suffice.
fn add(word: &AtomicU64, count: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

impl Inspector {
    /// A lane's histograms since attach, in the order of [`NAMES`].
    pub fn latencies(&self, lane: u32) -> [HistogramCopy; KINDS] {
        self.map.lane(lane).latencies.each_ref().map(|histogram| HistogramCopy {
            sum: histogram.sum.load(Ordering::Relaxed),
            buckets: histogram.buckets.each_ref().map(|count| count.load(Ordering::Relaxed)),
        })
    }
}

#[cfg(test)]
mod tests;
