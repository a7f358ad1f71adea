//! Starting again what has failed: for ever, with ever longer pauses, unless the operator has set a limit.
//!
//! Whether the holder waits or gives up, requests are held alike, and the cause may pass: a full disk,
//! a library that is missing in the middle of an upgrade. So giving up would gain nothing.

use std::time::Duration;

use super::{Action, Ownership};
use crate::args::RestartWhen;

/// Failures in a row double the pause from this …
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// … up to this.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long after a backend is ready its spare is started: not while the backend, which is catching
/// up, needs the processor.
const SPARE_PAUSE: Duration = Duration::from_millis(100);
/// The pause after a spare has failed for the first time. Nothing waits for a spare.
const FIRST_SPARE_PAUSE: Duration = Duration::from_secs(1);

impl Ownership {
    /// Tries in a row that came to nothing.
    pub(crate) fn tries(&self) -> u32 {
        self.failures.tries
    }

    /// How long to wait before a spare that is wanted is started.
    pub(crate) fn spare_pause(&self) -> Duration {
        match self.failures.spare {
            0 => SPARE_PAUSE,
            failures => doubled(FIRST_SPARE_PAUSE, failures),
        }
    }

    /// The spare has ended, or could not be started.
    pub(crate) fn spare_failed(&mut self) {
        self.spare = None;
        self.failures.spare = self.failures.spare.saturating_add(1);
    }

    pub(super) fn forget_failures(&mut self) {
        self.failures.tries = 0;
        self.failures.own = 0;
    }

    /// A shortage of memory, descriptors or space is not the backend's fault: it makes the pauses
    /// longer and uses up no limit.
    pub(super) fn count_failure(&mut self, shortage: bool) {
        self.failures.tries = self.failures.tries.saturating_add(1);
        self.failures.own = self.failures.own.saturating_add(u32::from(!shortage));
    }

    /// What follows when the program has to be started again.
    pub(super) fn again(&mut self) -> Vec<Action> {
        let is_too_much = self.policy.limit.is_some_and(|limit| self.failures.own > limit);
        let is_wanted = self.policy.has_program && self.policy.when != RestartWhen::Never;
        if !self.attached || !is_wanted || is_too_much {
            // Without a program it is one from outside that is waited for.
            self.down = self.policy.has_program;
            return vec![Action::GiveUp];
        }
        if self.failures.tries == 0 {
            return vec![Action::Start];
        }
        self.due = true;
        vec![Action::StartAfter(doubled(FIRST_PAUSE, self.failures.tries))]
    }
}

/// The pause after so many failures, 1 or more.
fn doubled(first: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests;
