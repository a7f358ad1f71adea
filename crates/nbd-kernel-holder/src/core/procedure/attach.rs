//! The steps from a program to a device that can be used.

use std::time::{Duration, Instant};

use crate::core::event::{Condition, HelperId, Revision, Watch};

/// No descriptor tells of changes in /sys.
const INTERVAL: Duration = Duration::from_millis(1);

/// An attach that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attach {
    /// A backend is started, or is to join.
    AwaitingBackend { until: Option<Instant> },
    /// Before the first request, where the device exists already.
    SilencingTimeouts { helper: HelperId, until: Instant },
    /// The state that names the sitter is written before it goes.
    Persisting { revision: Revision },
    /// The sitter tells the driver.
    Connecting { until: Instant },
    /// The driver does not take a device that is open: by what?
    FindingUsers { helper: HelperId, until: Instant },
    /// The size is to show.
    AwaitingSize { until: Instant },
    /// The same for a device that netlink has made.
    SilencingNew { helper: HelperId, until: Instant },
    /// The kernel may have kept limits of an earlier export.
    ComparingLimits { helper: HelperId, until: Instant },
    /// With the timeout, which a device that was just made did not have before.
    PersistingTimeout { revision: Revision },
    /// As the first user will.
    Reading { helper: HelperId, until: Instant },
    /// udev opens a device when it appears; what uses it at the same moment gets EBUSY.
    SettlingUdev { helper: HelperId, until: Instant },
    /// From here on another holder can adopt it.
    PersistingAttached { revision: Revision },
}

impl Attach {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match *self {
            Self::AwaitingBackend { until } => until,
            Self::SilencingTimeouts { until, .. }
            | Self::Connecting { until }
            | Self::FindingUsers { until, .. }
            | Self::AwaitingSize { until }
            | Self::SilencingNew { until, .. }
            | Self::ComparingLimits { until, .. }
            | Self::Reading { until, .. }
            | Self::SettlingUdev { until, .. } => Some(until),
            Self::Persisting { .. }
            | Self::PersistingTimeout { .. }
            | Self::PersistingAttached { .. } => None,
        }
    }

    pub(crate) fn watch(&self) -> Option<Watch> {
        let condition = Condition::Connected;
        let awaits = matches!(self, Self::AwaitingSize { .. });
        awaits.then_some(Watch { condition, interval: INTERVAL })
    }

    /// A driver that refuses closes the lanes, which ends the backend: what the sitter has to say of it comes
    /// first.
    pub(crate) fn awaits_driver(&self) -> bool {
        use Attach::{AwaitingSize, Connecting, FindingUsers};
        matches!(self, Connecting { .. } | FindingUsers { .. } | AwaitingSize { .. })
    }

    /// The helper process that is under way.
    pub(crate) fn helper(&self) -> Option<HelperId> {
        match *self {
            Self::SilencingTimeouts { helper, .. }
            | Self::FindingUsers { helper, .. }
            | Self::SilencingNew { helper, .. }
            | Self::ComparingLimits { helper, .. }
            | Self::Reading { helper, .. }
            | Self::SettlingUdev { helper, .. } => Some(helper),
            _ => None,
        }
    }
}
