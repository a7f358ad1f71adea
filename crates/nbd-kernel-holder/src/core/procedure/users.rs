//! The steps of a look at who uses the device.

use std::time::Instant;

use nbd_device_users::User;

use crate::core::event::{HelperId, UsersUnknown};

/// A look at who uses the device, which is repeated while only passing users do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UsersCheck {
    /// Passing users are refused, too, from then on.
    pub(crate) give_up: Instant,
    pub(crate) step: Step,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Scanning { helper: HelperId, until: Instant },
    Pausing { until: Instant },
}

/// What came of it.
pub(crate) enum Checked {
    NotYet(UsersCheck),
    Unused,
    Used(Vec<User>),
    Unknown(UsersUnknown),
}

impl UsersCheck {
    pub(crate) fn deadline(&self) -> Instant {
        match self.step {
            Step::Scanning { until, .. } | Step::Pausing { until } => until,
        }
    }

    /// The helper process that is under way.
    pub(crate) fn helper(&self) -> Option<HelperId> {
        match self.step {
            Step::Scanning { helper, .. } => Some(helper),
            Step::Pausing { .. } => None,
        }
    }
}
