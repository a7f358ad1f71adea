//! What happened between two looks at a device.

use std::time::Duration;

use nbd_control::latency::LatencyStatus;
use nbd_control::status::{Status, TotalsStatus};

/// Requests and bytes in a second, and how long the requests took.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rates {
    pub(crate) seconds: f64,
    pub(crate) reads: f64,
    pub(crate) writes: f64,
    pub(crate) flushes: f64,
    /// Trims and all others.
    pub(crate) others: f64,
    pub(crate) errors: f64,
    pub(crate) read_bytes: f64,
    pub(crate) written_bytes: f64,
    /// By kind, as the holder tells them.
    pub(crate) kinds: Vec<LatencyStatus>,
    /// Those of all kinds together.
    pub(crate) all: LatencyStatus,
}

impl Rates {
    /// `None` if the looks cannot be compared: nothing goes backwards unless the device was
    /// attached anew.
    pub(crate) fn between(earlier: &Status, later: &Status, time: Duration) -> Option<Self> {
        let seconds = time.as_secs_f64();
        if earlier.sitter_pid != later.sitter_pid || seconds <= 0.0 {
            return None;
        }
        let (before, now) = (&earlier.totals, &later.totals);
        let rate = |count: fn(&TotalsStatus) -> u64| {
            Some(count(now).checked_sub(count(before))? as f64 / seconds)
        };
        let kinds: Vec<_> = later
            .latencies
            .iter()
            .map(|kind| match earlier.latencies.iter().find(|it| it.command == kind.command) {
                Some(before) => kind.since(before),
                None => kind.clone(),
            })
            .collect();
        Some(Self {
            seconds,
            reads: rate(|totals| totals.reads)?,
            writes: rate(|totals| totals.writes)?,
            flushes: rate(|totals| totals.flushes)?,
            others: rate(|totals| totals.trims.saturating_add(totals.others))?,
            errors: rate(|totals| totals.errors)?,
            read_bytes: rate(|totals| totals.read_bytes)?,
            written_bytes: rate(|totals| totals.written_bytes)?,
            all: LatencyStatus::together("all", &kinds),
            kinds,
        })
    }

    /// Requests of all kinds in a second.
    pub(crate) fn requests(&self) -> f64 {
        self.reads + self.writes + self.flushes + self.others
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use nbd_control::latency::Bucket;

    use super::*;
    use crate::inspect::render::tests::example;

    /// So many reads of 4 KiB that took half a millisecond.
    pub(crate) fn after_reads(reads: u64) -> Status {
        let mut status = example();
        status.totals.reads = reads;
        status.totals.read_bytes = 4096 * reads;
        let bucket = Bucket { from_ns: 458_752, below_ns: Some(524_288), count: reads };
        status.latencies = vec![
            LatencyStatus::new("read".into(), reads as f64 / 2.0, vec![bucket]),
            LatencyStatus::new("write".into(), 0.0, Vec::new()),
        ];
        status
    }

    #[test]
    fn a_rate_is_what_was_added_in_a_second() {
        let time = Duration::from_secs(2);
        let rates = Rates::between(&after_reads(100), &after_reads(700), time).unwrap();
        assert_eq!((rates.reads, rates.requests(), rates.writes), (300.0, 300.0, 0.0));
        assert_eq!(rates.read_bytes, 300.0 * 4096.0);
        assert_eq!((rates.all.count, rates.all.p99_ms), (600, Some(0.524_288)));
        assert_eq!(rates.kinds[1].median_ms, None);
    }

    #[test]
    fn another_device_of_the_same_number_is_not_compared() {
        let time = Duration::from_secs(1);
        assert_eq!(Rates::between(&after_reads(2), &after_reads(1), time), None);
        let mut other = after_reads(3);
        other.sitter_pid += 1;
        assert_eq!(Rates::between(&after_reads(2), &other, time), None);
        assert_eq!(Rates::between(&after_reads(2), &after_reads(3), Duration::ZERO), None);
    }
}
