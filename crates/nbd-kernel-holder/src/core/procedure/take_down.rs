//! The steps of taking a device down.

use std::time::Instant;

use super::detach::Requester;
use super::leaving::Leaving;
use super::releasing::Releasing;
use crate::core::event::{AttachError, Released, Watch};

/// Why it is taken down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Ordered at `begun`; `given_up` requests are failed by that.
    Detach { requester: Requester, by_force: bool, begun: Instant, given_up: usize },
    /// The driver has closed the lanes.
    Dropped,
    /// The attach has come to nothing.
    NotAttached(AttachError),
}

/// A device that is being taken down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TakeDown {
    pub(crate) cause: Cause,
    pub(crate) begun: Instant,
    pub(crate) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Releasing(Releasing),
    Leaving(Released, Leaving),
}

impl TakeDown {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Releasing(step) => step.deadline(),
            Phase::Leaving(_, step) => Some(step.deadline()),
        }
    }

    pub(crate) fn watches(&self) -> Vec<Watch> {
        match &self.phase {
            Phase::Releasing(step) => step.watch().into_iter().collect(),
            Phase::Leaving(_, step) => step.watches(),
        }
    }

    /// It is what another program has left of the device.
    pub(crate) fn is_clearing(&self) -> bool {
        self.cause == Cause::Dropped
    }
}
