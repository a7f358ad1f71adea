//! The slowest requests of the flight recorder in the last minute of I/O.

use nbd_control::trace::Executed;

/// How many are kept.
const MAX_KEPT_REQUESTS: usize = 32;
/// For so long, in nanoseconds.
const KEEP_TIME_NS: u64 = 60_000_000_000;

/// What was seen of a device's recorder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slow {
    /// What to ask for next.
    from: Vec<u64>,
    slowest: Vec<Executed>,
}

impl Slow {
    pub(crate) fn from(&self) -> Vec<u64> {
        self.from.clone()
    }

    /// Adds what was executed meanwhile.
    pub(crate) fn add(&mut self, executed: Vec<Executed>, next: Vec<u64>) {
        self.from = next;
        self.slowest.extend(executed);
        // The recorder's own clock: without requests nothing grows old.
        let latest = self.slowest.iter().map(|it| it.finished_at).max().unwrap_or(0);
        self.slowest.retain(|it| it.finished_at >= latest.saturating_sub(KEEP_TIME_NS));
        self.slowest.sort_by_key(|it| std::cmp::Reverse(took_ns(it)));
        self.slowest.truncate(MAX_KEPT_REQUESTS);
    }

    /// The slowest first.
    pub(crate) fn slowest(&self) -> &[Executed] {
        &self.slowest
    }
}

fn took_ns(executed: &Executed) -> u64 {
    executed.finished_at.saturating_sub(executed.received_at)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn executed(number: u64, finished_at: u64, took: u64) -> Executed {
        Executed {
            lane: 0,
            number,
            command: "write".into(),
            flags: 0,
            offset: 4096 * number,
            length: 4096,
            cookie: number,
            received_at: finished_at - took,
            started_at: finished_at - took,
            finished_at,
            attempts: 1,
            error: 0,
            backend: 1,
        }
    }

    #[test]
    fn the_slowest_of_a_minute_come_first() {
        let mut slow = Slow::default();
        slow.add(vec![executed(0, 1_000, 900), executed(1, 2_000, 100)], vec![2]);
        slow.add(vec![executed(2, 3_000, 2_500)], vec![3]);
        let numbers =
            |slow: &Slow| -> Vec<u64> { slow.slowest().iter().map(|it| it.number).collect() };
        assert_eq!((numbers(&slow), slow.from()), (vec![2, 0, 1], vec![3]));
        slow.add(vec![executed(3, KEEP_TIME_NS + 2_500, 10)], vec![4]);
        assert_eq!(numbers(&slow), [2, 3], "a minute later");
        slow.add((4..200).map(|n| executed(n, KEEP_TIME_NS + 9_000, n)).collect(), vec![200]);
        assert_eq!(slow.slowest().len(), MAX_KEPT_REQUESTS);
    }
}
