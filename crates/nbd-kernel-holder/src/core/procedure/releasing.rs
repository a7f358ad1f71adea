//! The steps until the driver has let go of the device.

use std::time::{Duration, Instant};

use crate::core::event::{Condition, HelperId, Watch};

/// No descriptor tells of changes in /sys.
const INTERVAL: Duration = Duration::from_millis(2);

/// How far that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Releasing {
    /// Counting what has to be answered.
    Surveying,
    /// Finding out whether the driver holds its lock.
    TryingLock { helper: HelperId, until: Instant, unanswered: bool },
    /// A signal has the driver fail what is in flight without its lock, but only as long as the lanes are
    /// open: otherwise the ioctl returns by itself, and waits for the lock.
    InterruptingSitter { until: Instant },
    /// Telling the driver to disconnect.
    Disconnecting { helper: HelperId, until: Instant, then: Then },
    /// The ioctl returns, or the sitter is dead.
    AwaitingSitter { until: Instant, is_last: bool },
    /// The driver clears the device.
    AwaitingClear { until: Instant },
    /// Who keeps it open?
    FindingUsers { helper: HelperId, until: Instant },
    /// Users that have seen its end only have to close it, unless they are lasting ones.
    AwaitingClose { until: Instant, lasting: bool },
    /// Whether the driver itself still waits for something.
    AwaitingQuiet { until: Instant },
    /// A change of the size keeps the lock of the driver.
    AwaitingNoSizeChange { until: Instant },
    /// For the answer.
    FindingRemainingUsers { helper: HelperId, until: Instant },
}

/// What follows when the driver was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    KillSitter,
    KillSitterAgain,
    AwaitUsers,
}

impl Releasing {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match *self {
            Self::Surveying => None,
            Self::TryingLock { until, .. }
            | Self::InterruptingSitter { until }
            | Self::Disconnecting { until, .. }
            | Self::AwaitingSitter { until, .. }
            | Self::AwaitingClear { until }
            | Self::FindingUsers { until, .. }
            | Self::AwaitingClose { until, .. }
            | Self::AwaitingQuiet { until }
            | Self::AwaitingNoSizeChange { until }
            | Self::FindingRemainingUsers { until, .. } => Some(until),
        }
    }

    pub(crate) fn watch(&self) -> Option<Watch> {
        let condition = match self {
            Self::InterruptingSitter { .. } => Condition::SitterParked,
            Self::AwaitingClear { .. } | Self::AwaitingClose { .. } => Condition::Clear,
            Self::AwaitingQuiet { .. } => Condition::Quiet,
            Self::AwaitingNoSizeChange { .. } => Condition::NoSizeChange,
            _ => return None,
        };
        Some(Watch { condition, interval: INTERVAL })
    }
}
