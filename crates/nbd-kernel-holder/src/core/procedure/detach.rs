//! The steps to the end of a device, in order or by force.

use std::time::{Duration, Instant};

use super::users::UsersCheck;
use crate::core::event::{ClientId, Condition, DetachError, HelperId, Watch};

const INTERVAL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DetachOrder {
    pub(crate) client: ClientId,
    pub(crate) force: bool,
}

/// On whose behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// The one of the pending order.
    Client,
    /// This process is to end.
    Signal,
}

/// A detach that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Detach {
    pub(crate) requester: Requester,
    /// When it was begun, or when force took its place.
    pub(crate) begun: Instant,
    pub(crate) step: Step,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing may use the device.
    CheckingUsers(UsersCheck),
    /// udev is told to look away.
    Leaving { helper: HelperId, until: Instant },
    /// What is dirty is written back, and the driver is told to disconnect.
    Flushing(Flushing),
    /// What has come since it was looked at.
    CheckingAgain(UsersCheck),
    /// It stays, and udev is told to watch it again.
    Staying { helper: HelperId, until: Instant, error: DetachError },
    /// By force: what is in flight is noted.
    Noting,
    /// The backend may answer by itself.
    Draining { until: Instant, given_up: usize },
    /// The EIO backend answers.
    Abandoning { until: Instant, given_up: usize },
    /// The driver may go on with that only now.
    AwaitingSizeChange { until: Instant, given_up: usize },
}

impl Detach {
    /// From `enough` on, if that is known, only what was noted has to be answered.
    pub(crate) fn deadline(&self, now: Instant, enough: Option<Instant>) -> Option<Instant> {
        match &self.step {
            Step::CheckingUsers(check) | Step::CheckingAgain(check) => Some(check.deadline()),
            Step::Leaving { until, .. } | Step::Staying { until, .. } => Some(*until),
            Step::Flushing(flushing) => Some(flushing.deadline()),
            Step::Noting => None,
            Step::Draining { until, .. } | Step::AwaitingSizeChange { until, .. } => Some(*until),
            Step::Abandoning { until, .. } => {
                // Once it has passed it is no deadline any more, but what is watched.
                let enough = enough.filter(|enough| *enough > now);
                Some(enough.map_or(*until, |enough| enough.min(*until)))
            }
        }
    }

    pub(crate) fn watch(&self, now: Instant, enough: Option<Instant>) -> Option<Watch> {
        let condition = match self.step {
            Step::Draining { .. } => Condition::NotedAnswered,
            Step::Abandoning { .. } => match now >= enough? {
                true => Condition::NotedAnswered,
                false => Condition::NotedAnsweredAndQuiet,
            },
            Step::AwaitingSizeChange { .. } => Condition::NoSizeChange,
            _ => return None,
        };
        Some(Watch { condition, interval: INTERVAL })
    }

    /// It is by force by now.
    pub(crate) fn is_by_force(&self) -> bool {
        use Step::{Abandoning, AwaitingSizeChange, Draining, Noting};
        matches!(
            self.step,
            Noting | Draining { .. } | Abandoning { .. } | AwaitingSizeChange { .. }
        )
    }
}

impl Step {
    /// The helper process that is under way.
    pub(crate) fn helper(&self) -> Option<HelperId> {
        match self {
            Self::CheckingUsers(check) | Self::CheckingAgain(check) => check.helper(),
            Self::Leaving { helper, .. } | Self::Staying { helper, .. } => Some(*helper),
            Self::Flushing(flushing) => Some(flushing.helper),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flushing {
    pub(crate) helper: HelperId,
    pub(crate) until: Instant,
    /// When to look again; nothing while a look is under way. Counted from its answer: with looks that
    /// take longer than the interval the event loop would come to nothing else.
    pub(crate) look: Option<Instant>,
    /// Since when no backend answers.
    pub(crate) unserved: Option<Instant>,
}

impl Flushing {
    pub(crate) fn deadline(&self) -> Instant {
        self.look.map_or(self.until, |look| look.min(self.until))
    }
}
