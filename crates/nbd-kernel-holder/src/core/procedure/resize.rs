//! The steps to another size.

use std::time::{Duration, Instant};

use super::users::UsersCheck;
use crate::core::event::{ClientId, Condition, HelperId, Revision, Watch};

const ANSWER_INTERVAL: Duration = Duration::from_millis(20);
const SIZE_INTERVAL: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResizeOrder {
    pub(crate) client: ClientId,
    pub(crate) size: Option<u64>,
    pub(crate) force: bool,
}

/// A resize that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resize {
    pub(crate) plan: Plan,
    pub(crate) step: Step,
}

/// What is to become of the size, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) order: ResizeOrder,
    pub(crate) sizes: Sizes,
}

/// The sizes before, in bytes. They differ while an earlier change is still to be done by the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// What the kernel shows.
    pub(crate) shown: u64,
    /// What is written down, which every backend has to have.
    pub(crate) written: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Is the device served?
    Surveying,
    /// A backend looks at its storage and takes over.
    Probing { until: Instant },
    /// Nothing may use what a smaller size takes away.
    CheckingUsers { check: UsersCheck, size: u64 },
    /// A larger size is written down first, so that every successor from now on has enough.
    Persisting { revision: Revision, size: u64 },
    /// What is in flight now is to be answered first.
    Noting { size: u64 },
    /// Newer drivers wait, under their lock, for all that is in flight, and let nothing new in: what
    /// waits for a backend that does not answer then waits for ever, and a detach with it. So all
    /// that was sent before must be answered; a backend that answers that answers the rest, too.
    Answering { until: Instant, size: u64 },
    /// The driver is told.
    Telling { helper: HelperId, until: Instant, size: u64 },
    /// The size is to show.
    AwaitingSize { until: Instant, size: u64 },
    /// udev looks at the device again.
    SettlingUdev { helper: HelperId, until: Instant, size: u64 },
}

impl Resize {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.step {
            Step::Surveying | Step::Persisting { .. } | Step::Noting { .. } => None,
            Step::CheckingUsers { check, .. } => Some(check.deadline()),
            Step::Probing { until }
            | Step::Answering { until, .. }
            | Step::Telling { until, .. }
            | Step::AwaitingSize { until, .. }
            | Step::SettlingUdev { until, .. } => Some(*until),
        }
    }

    pub(crate) fn watch(&self) -> Option<Watch> {
        Some(match self.step {
            Step::Answering { .. } => {
                Watch { condition: Condition::NotedAnswered, interval: ANSWER_INTERVAL }
            }
            Step::AwaitingSize { size, .. } => {
                Watch { condition: Condition::SizeIs(size), interval: SIZE_INTERVAL }
            }
            _ => return None,
        })
    }
}
