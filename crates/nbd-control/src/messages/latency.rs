//! How long requests took: histograms as a holder tells them, and what is read from them.

use serde::{Deserialize, Serialize};

/// How long answered requests of one kind took, from when a backend took them to the end of their
/// execution. The percentiles are upper bounds, a quarter too high at most.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// `read`, `write`, `flush` or `other`.
    pub command: String,
    /// How many requests there were.
    pub count: u64,
    /// The sum of their times in milliseconds.
    pub sum_ms: f64,
    /// Half of them took no longer; absent if there was none, as all that follow.
    pub median_ms: Option<f64>,
    /// 99 % of them took no longer.
    pub p99_ms: Option<f64>,
    /// 99.9 % of them took no longer.
    pub p999_ms: Option<f64>,
    /// None of them took longer.
    pub max_ms: Option<f64>,
    /// The buckets that are not empty, in order.
    pub buckets: Vec<Bucket>,
}

/// Requests that took about the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// From so many nanoseconds on.
    pub from_ns: u64,
    /// Less than so many nanoseconds; without end if absent.
    pub below_ns: Option<u64>,
    /// How many.
    pub count: u64,
}

impl Bucket {
    /// A time that none of its requests exceeded. Of those beyond all buckets nothing better is
    /// known than where they begin.
    const fn most_ms(&self) -> f64 {
        let nanoseconds = match self.below_ns {
            Some(end) => end,
            None => self.from_ns,
        };
        nanoseconds as f64 / 1e6
    }
}

impl LatencyStatus {
    /// Reads all there is to read from buckets in order. The ledger is hostile input, so their counts may be anything.
    #[must_use]
    pub fn new(command: String, sum_ms: f64, mut buckets: Vec<Bucket>) -> Self {
        buckets.retain(|bucket| bucket.count > 0);
        let count = buckets.iter().fold(0u64, |sum, bucket| sum.saturating_add(bucket.count));
        let within = |share: f64| {
            let rank = (count as f64 * share).ceil().max(1.0);
            let mut seen = 0u64;
            let found = buckets.iter().find(|bucket| {
                seen = seen.saturating_add(bucket.count);
                seen as f64 >= rank
            });
            found.map(Bucket::most_ms)
        };
        Self {
            command,
            count,
            sum_ms,
            median_ms: within(0.5),
            p99_ms: within(0.99),
            p999_ms: within(0.999),
            max_ms: buckets.last().map(Bucket::most_ms),
            buckets,
        }
    }

    /// Those that were counted after `earlier` was told.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bucket: &Bucket| {
            let same = earlier.buckets.iter().find(|it| it.from_ns == bucket.from_ns);
            same.map_or(0, |it| it.count)
        };
        let new = self
            .buckets
            .iter()
            .map(|bucket| Bucket { count: bucket.count.saturating_sub(before(bucket)), ..*bucket });
        let sum_ms = (self.sum_ms - earlier.sum_ms).max(0.0);
        Self::new(self.command.clone(), sum_ms, new.collect())
    }

    /// All kinds in one.
    #[must_use]
    pub fn together(command: &str, kinds: &[Self]) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        for bucket in kinds.iter().flat_map(|kind| &kind.buckets) {
            match buckets.iter_mut().find(|it| it.from_ns == bucket.from_ns) {
                Some(same) => same.count = same.count.saturating_add(bucket.count),
                None => buckets.push(*bucket),
            }
        }
        buckets.sort_by_key(|bucket| bucket.from_ns);
        let sum_ms = kinds.iter().map(|kind| kind.sum_ms).sum();
        Self::new(command.into(), sum_ms, buckets)
    }

    /// How many took less than a time at which a bucket ends.
    #[must_use]
    pub fn below(&self, nanoseconds: u64) -> u64 {
        let within = |bucket: &&Bucket| bucket.below_ns.is_some_and(|end| end <= nanoseconds);
        let counts = self.buckets.iter().filter(within).map(|bucket| bucket.count);
        counts.fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(from_ns: u64, count: u64) -> Bucket {
        Bucket { from_ns, below_ns: Some(2 * from_ns), count }
    }

    fn of(counts: &[(u64, u64)]) -> LatencyStatus {
        let buckets = counts.iter().map(|&(from, count)| bucket(from, count)).collect();
        LatencyStatus::new("read".into(), 1.5, buckets)
    }

    #[test]
    fn percentiles_are_the_ends_of_their_buckets() {
        let told = of(&[(1_000_000, 990), (2_000_000, 9), (4_000_000, 0), (8_000_000, 1)]);
        assert_eq!(told.count, 1000);
        let all = [told.median_ms, told.p99_ms, told.p999_ms, told.max_ms];
        assert_eq!(all, [Some(2.0), Some(2.0), Some(4.0), Some(16.0)]);
        assert_eq!(told.buckets.len(), 3, "empty ones are left out");
        assert_eq!((told.below(2_000_000), told.below(16_000_000)), (990, 1000));
    }

    #[test]
    fn one_request_is_the_median_and_none_has_no_time() {
        let one = of(&[(1_000_000, 1)]);
        assert_eq!((one.median_ms, one.max_ms), (Some(2.0), Some(2.0)));
        let none = of(&[]);
        assert_eq!((none.count, none.median_ms, none.max_ms), (0, None, None));
    }

    #[test]
    fn beyond_all_buckets_the_least_is_told() {
        let last = Bucket { from_ns: 5_000_000, below_ns: None, count: 1 };
        let told = LatencyStatus::new("read".into(), 9.0, vec![last]);
        assert_eq!((told.median_ms, told.below(u64::MAX)), (Some(5.0), 0));
    }

    #[test]
    fn what_is_new_is_the_difference() {
        let before = of(&[(1_000_000, 5)]);
        let after = of(&[(1_000_000, 5), (4_000_000, 2)]);
        let new = after.since(&before);
        assert_eq!((new.count, new.median_ms), (2, Some(8.0)));
        assert_eq!(before.since(&after).count, 0, "another device's, or a scribble");
        let both = LatencyStatus::together("all", &[before, after]);
        assert_eq!((both.count, both.median_ms, both.buckets.len()), (12, Some(2.0), 2));
    }

    #[test]
    fn invented_counts_do_no_harm() {
        let wild = of(&[(1, u64::MAX), (2, u64::MAX), (4, 7)]);
        assert_eq!((wild.count, wild.below(4)), (u64::MAX, u64::MAX));
        let _ = (
            wild.since(&of(&[(4, u64::MAX)])),
            LatencyStatus::together("all", &[wild.clone(), wild]),
        );
    }
}
