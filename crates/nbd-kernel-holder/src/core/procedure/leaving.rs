//! The steps to the end of the backends.

use std::time::{Duration, Instant};

use super::limits::STEP_TIMEOUT;
use crate::core::event::{Condition, HelperId, Watch};

/// How long a backend may take to end by itself in a detach in order: nbd-serve gives another server
/// 5 s to close its connections, and a program that it has started as long to end after SIGTERM.
pub(crate) const ORDERLY_TIMEOUT: Duration = Duration::from_secs(15);
/// How often to look whether the owner is stopped, and how often in a row, to be sure: under strace a
/// process is stopped for a moment at each system call.
pub(crate) const STOPPED_INTERVAL: Duration = Duration::from_millis(20);
pub(crate) const STOPPED_LOOKS: u32 = 5;
/// How often to look whether all are dead, beside what their descriptors tell.
pub(crate) const DEAD_INTERVAL: Duration = Duration::from_millis(20);

/// How far that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// The owner may close its own connections.
    AwaitingOwner { lanes_ended: Instant, in_order: bool, stopped: u32 },
    /// All that were killed are to be dead.
    AwaitingProcesses { until: Instant },
    /// A store to `queue/` may wait for requests that nothing answers.
    Restoring { helper: HelperId, until: Instant },
}

impl Leaving {
    pub(crate) fn deadline(&self) -> Instant {
        match *self {
            Self::AwaitingOwner { lanes_ended, in_order, .. } => {
                lanes_ended + owner_timeout(in_order)
            }
            Self::AwaitingProcesses { until } | Self::Restoring { until, .. } => until,
        }
    }

    pub(crate) fn watches(&self) -> Vec<Watch> {
        let watch = |condition, interval| Watch { condition, interval };
        match self {
            Self::AwaitingOwner { .. } => vec![
                watch(Condition::OwnerGone, STOPPED_INTERVAL),
                watch(Condition::OwnerStopped, STOPPED_INTERVAL),
            ],
            Self::AwaitingProcesses { .. } => vec![watch(Condition::NoProcesses, DEAD_INTERVAL)],
            Self::Restoring { .. } => Vec::new(),
        }
    }
}

pub(crate) fn owner_timeout(in_order: bool) -> Duration {
    if in_order { ORDERLY_TIMEOUT } else { STEP_TIMEOUT }
}
