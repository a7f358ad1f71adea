//! How long the steps of a take-down may take.

use std::time::{Duration, Instant};

/// How long the steps may take together. The last ones get a little time whatever the others took, so
/// that all ends within 10 s.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(7500);
/// How long each step may take before the next, harder one …
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// … and the least time for it, whatever the steps before it took.
pub(crate) const MIN_STEP_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the next step may take.
pub(crate) fn left(deadline: Instant, now: Instant) -> Duration {
    deadline.saturating_duration_since(now).clamp(MIN_STEP_TIMEOUT, STEP_TIMEOUT)
}
