//! Histograms: how long requests took, counted by backends, for onlookers.
//!
//! Buckets are a quarter of an octave wide, so that a time is known to within a quarter, from a
//! microsecond to almost a minute, with one shift and no division. No decision depends on them, so
//! they are not audited: readers accept any words.

use std::sync::atomic::{AtomicU64, Ordering};

use nbd_proto::CommandType;

use crate::inspect::Inspector;
use crate::layout::{HISTOGRAM_BUCKETS, HISTOGRAMS, Histogram, SLOTS};

/// Times below 2 to this power nanoseconds fall into bucket 0.
const MIN_TIME_LOG2: u32 = 10;
/// Buckets of an octave, as a power of two.
const BUCKETS_PER_OCTAVE_LOG2: u32 = 2;

/// What each histogram of a lane counts, in the order of the ledger. The index is the command's
/// number; 2 is the disconnect, which has no answer, so its place counts all other commands.
pub const HISTOGRAM_NAMES: [&str; HISTOGRAMS] = ["read", "write", "other", "flush"];
const OTHER_INDEX: u16 = 2;
const INDEX_BITS: u32 = HISTOGRAMS.ilog2();

/// A copy of one of a lane's histograms; see [`Histogram`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Sum of the times in nanoseconds.
    pub sum: u64,
    /// How many fell into each bucket.
    pub buckets: [u64; HISTOGRAM_BUCKETS],
}

impl Default for HistogramSnapshot {
    fn default() -> Self {
        Self { sum: 0, buckets: [0; HISTOGRAM_BUCKETS] }
    }
}

impl HistogramSnapshot {
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
    let time = if nanoseconds < 1 << MIN_TIME_LOG2 { 1 << MIN_TIME_LOG2 } else { nanoseconds };
    let octave = time.ilog2();
    // The first of these digits is always 1 and adds a whole octave, which the end subtracts.
    let digits = (time >> (octave - BUCKETS_PER_OCTAVE_LOG2)) as usize;
    let index = (((octave - MIN_TIME_LOG2) << BUCKETS_PER_OCTAVE_LOG2) as usize + digits)
        - (1 << BUCKETS_PER_OCTAVE_LOG2);
    if index < HISTOGRAM_BUCKETS { index } else { HISTOGRAM_BUCKETS - 1 }
}

/// The shortest time in nanoseconds that falls into a bucket, and the first that no longer does;
/// the last bucket has no end.
#[must_use]
pub const fn bounds(bucket: usize) -> (u64, Option<u64>) {
    let from = if bucket == 0 { 0 } else { begin(bucket) };
    (from, if bucket + 1 < HISTOGRAM_BUCKETS { Some(begin(bucket + 1)) } else { None })
}

const fn begin(bucket: usize) -> u64 {
    let digits =
        (1 << BUCKETS_PER_OCTAVE_LOG2) + (bucket as u64 & ((1 << BUCKETS_PER_OCTAVE_LOG2) - 1));
    digits << (MIN_TIME_LOG2 - BUCKETS_PER_OCTAVE_LOG2 + (bucket as u32 >> BUCKETS_PER_OCTAVE_LOG2))
}

/// Times of one transmission, added to the ledger's histograms just before it is committed: what is
/// executed again after a death must not count twice.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// A time, and the histogram's index in the lowest bits. Each time belongs to a slot that is
    /// not free, so there are at most as many as slots.
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
        let index = if command.0 <= CommandType::FLUSH.0 { command.0 } else { OTHER_INDEX };
        // A caller that records more executions than it stages has a bug; it loses counts only.
        if let Some(time) = self.times.get_mut(self.count) {
            *time = nanoseconds << INDEX_BITS | u64::from(index);
            self.count += 1;
        }
    }

    pub(crate) fn add_to(&mut self, histograms: &[Histogram; HISTOGRAMS]) {
        for &time in self.times.iter().take(self.count) {
            let histogram = &histograms[time as usize % HISTOGRAMS];
            let nanoseconds = time >> INDEX_BITS;
            add(&histogram.sum, nanoseconds);
            add(&histogram.buckets[bucket(nanoseconds)], 1);
        }
        self.count = 0;
    }
}

/// A lane has one transmitter and no other process stores here, so load and store suffice.
fn add(word: &AtomicU64, count: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

impl Inspector {
    /// A lane's histograms since attach, in the order of [`HISTOGRAM_NAMES`].
    pub fn latencies(&self, lane: u32) -> [HistogramSnapshot; HISTOGRAMS] {
        self.map.lane(lane).latencies.each_ref().map(|histogram| HistogramSnapshot {
            sum: histogram.sum.load(Ordering::Relaxed),
            buckets: histogram.buckets.each_ref().map(|count| count.load(Ordering::Relaxed)),
        })
    }
}

#[cfg(test)]
mod tests;
