//! What is known of backends beside who has the lanes.

use std::time::Instant;

use crate::core::event::{BackendId, OwnerEnd, Program};

/// What is to become of them, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backends {
    /// What is in flight is to be answered with EIO.
    pub(crate) fail_order: Option<FailOrder>,
    pub(crate) probe: Option<Probe>,
    /// The backend of an attach has failed, which is the end of it.
    pub(crate) hopeless: bool,
    pub(crate) replacement: Option<Replacement>,
    pub(crate) owner_exit: OwnerExit,
}

/// A backend on its way that was asked for its present size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Less is of no use.
    pub(crate) least: u64,
    pub(crate) backend: Option<BackendId>,
    /// What it has said.
    pub(crate) offered: Option<u64>,
    pub(crate) is_gone: bool,
}

/// Another program that is to serve the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replacement {
    pub(crate) program: Program,
    /// What was started last of it.
    pub(crate) backend: Option<BackendId>,
}

/// How far the order has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FailOrder {
    /// The owner is to be dead until then, and the EIO backend is to come.
    Killing { until: Instant },
    /// The EIO backend answers; from `enough` on only what was in flight at the order counts.
    Answering { enough: Instant },
    /// It has done so, and is to leave.
    Leaving,
}

/// Which ends are our doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnerExit {
    /// The driver is being told to disconnect, which tells the backend to end.
    pub(crate) leaving: bool,
    /// The owner has ended because of that, most probably.
    pub(crate) departed: Option<OwnerEnd>,
    /// When its lanes were ended, which tells it to end, too.
    pub(crate) lanes_ended: Option<Instant>,
    /// An owner that the driver may have told to end, or still may, in a detach that was refused.
    pub(crate) told: Option<BackendId>,
}

impl OwnerExit {
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }

    pub(crate) fn lanes_ended(&self) -> Option<Instant> {
        self.lanes_ended
    }

    pub(crate) fn has_departed(&self) -> bool {
        self.departed.is_some()
    }
}
