//! The steps to another build of the holder.

use std::time::Instant;

use crate::core::event::{ClientId, HelperId, Revision};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpgradeOrder {
    pub(crate) client: ClientId,
    pub(crate) program: String,
}

/// An upgrade that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upgrade {
    pub(crate) order: UpgradeOrder,
    pub(crate) step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The new program looks at what it would take over, before anything is given up for it.
    Checking { helper: HelperId, until: Instant },
    /// A backend is on its way.
    Settling { until: Instant },
    /// The new program reads the state.
    Persisting { revision: Revision },
    /// What comes back from that is why it did not.
    Becoming,
}

impl Upgrade {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.step {
            Step::Checking { until, .. } | Step::Settling { until } => Some(until),
            Step::Persisting { .. } | Step::Becoming => None,
        }
    }
}
