//! How far the state on its file is behind.

use std::time::{Duration, Instant};

use crate::core::event::{BackendId, Revision};

/// How far the state on its file is behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durability {
    /// Of the latest state.
    pub(crate) revision: Revision,
    pub(crate) unsaved: Option<Unsaved>,
    pub(crate) grant: Option<PendingGrant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsaved {
    pub(crate) due: Instant,
    pub(crate) pause: Duration,
}

/// An owner that gets the lanes once the state of this revision is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PendingGrant {
    pub(crate) backend: BackendId,
    pub(crate) revision: Revision,
    /// The log tells that it waits.
    pub(crate) is_told: bool,
}

impl Durability {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.unsaved.as_ref().map(|unsaved| unsaved.due)
    }

    pub(crate) fn pending_grant(&self) -> Option<PendingGrant> {
        self.grant
    }
}
