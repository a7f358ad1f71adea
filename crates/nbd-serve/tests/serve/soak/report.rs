//! What a soak has seen.

use std::fmt;
use std::time::Duration;

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Report {
    pub(super) requests: u64,
    pub(super) kills: u64,
    /// Answers that tell of an error.
    pub(super) errors: u64,
    /// Replies to what was answered already, or never asked.
    pub(super) doubled: u64,
    /// Reads that did not find what was written last.
    pub(super) lost: u64,
    pub(super) unanswered: u64,
    pub(super) longest: Stall,
}

/// The time from a request to its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stall {
    pub(super) time: Duration,
    /// What was asked.
    pub(super) of: &'static str,
}

impl Report {
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            kills: self.kills + other.kills,
            errors: self.errors + other.errors,
            doubled: self.doubled + other.doubled,
            lost: self.lost + other.lost,
            unanswered: self.unanswered + other.unanswered,
            longest: self.longest.max(other.longest),
        }
    }

    pub(super) fn is_good(&self) -> bool {
        (self.errors, self.doubled, self.lost, self.unanswered) == (0, 0, 0, 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, kills, errors, doubled, lost, unanswered, longest } = self;
        write!(
            formatter,
            "{requests} requests, {kills} kills: {errors} errors, {doubled} double replies, \
             {lost} lost writes, {unanswered} never answered; longest stall {} ms, of a {}",
            longest.time.as_millis(),
            longest.of
        )
    }
}

/// Median, 99th percentile and the longest, in words.
pub(super) fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at =
        |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    format!("median {:.1} ms, p99 {:.1} ms, worst {:.1} ms", at(50), at(99), at(100))
}
