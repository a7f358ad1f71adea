//! Answering what is in flight with EIO, because the operator says so. The EIO backend does it; here it
//! is decided when.

use std::time::{Duration, Instant};

use super::event::{Condition, Note, Refused, Reply, Watch};
use super::ownership;
use super::state::{Core, FailOrder, Wait};

/// How often to look whether the requests are answered.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long requests that come meanwhile are answered as well. Those that a full socket has kept
/// in the driver come only then.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// How long a killed backend may take to die. One in uninterruptible sleep dies when its storage
/// answers, and its requests would have been answered then.
pub(crate) const DEATH_TIMEOUT: Duration = Duration::from_secs(10);

impl Core {
    /// By order: the owner dies first.
    pub(super) fn begin_fail(&mut self) {
        let until = self.after(DEATH_TIMEOUT);
        self.backends.fail_order = Some(FailOrder::Killing { until });
    }

    /// When the order is withdrawn, unless the owner has died by then, or less is enough.
    pub(super) fn fail_deadline(&self) -> Option<Instant> {
        match self.backends.fail_order.as_ref()? {
            FailOrder::Killing { until } => {
                (self.ownership.is_fencing() && self.ownership.has_backend()).then_some(*until)
            }
            FailOrder::Answering { enough } => Some(*enough).filter(|enough| *enough > self.now),
            FailOrder::Leaving => None,
        }
    }

    pub(super) fn fail_watch(&self) -> Option<Watch> {
        let Some(FailOrder::Answering { enough }) = self.backends.fail_order else {
            return None;
        };
        let condition = match self.now >= enough {
            true => Condition::NotedAnswered,
            false => Condition::NotedAnsweredAndQuiet,
        };
        Some(Watch { condition, interval: INTERVAL })
    }

    /// The EIO backend is ready.
    pub(super) fn fail_answers(&mut self) {
        if self.backends.fail_order.is_some() {
            self.backends.fail_order = Some(FailOrder::Answering { enough: self.after(GRACE) });
        }
    }

    /// Lets the EIO backend go once it has answered what it was started for.
    pub(super) fn fail_condition_holds(&mut self, condition: Condition) {
        if self.fail_watch().is_some_and(|watch| watch.condition == condition) {
            self.backends.fail_order = Some(FailOrder::Leaving);
            self.note(Note::RequestsFailed);
            self.apply(&ownership::Event::FailDone);
        }
    }

    /// The EIO backend has left.
    pub(super) fn complete_fail(&mut self) {
        if self.backends.fail_order.take_if(|order| *order == FailOrder::Leaving).is_some() {
            self.reply_waiting(&[Wait::Fail], &Reply::RequestsFailed);
        }
    }

    /// The EIO backend came to nothing before its work was done.
    pub(super) fn fail_aborted(&mut self) {
        self.backends.fail_order = None;
        self.reply_waiting(&[Wait::Fail], &Reply::FailAborted);
    }

    /// Answers the operator, and leaves what is in flight to the successor.
    pub(super) fn check_fail_deadline(&mut self) {
        let is_killing = matches!(self.backends.fail_order, Some(FailOrder::Killing { .. }));
        if is_killing && self.fail_deadline().is_some_and(|until| until <= self.now) {
            self.backends.fail_order = None;
            self.apply(&ownership::Event::FailWithdrawn);
            self.note(Note::FailWithdrawn);
            self.reply_waiting(&[Wait::Fail], &Reply::FailWithdrawn);
        }
    }

    /// A device that is given up: what was ordered before is done by that, or by nothing.
    pub(super) fn drop_fail_order(&mut self) {
        if self.backends.fail_order.take().is_some() {
            self.reply_waiting(&[Wait::Fail], &Reply::Refused(Refused::BeingDetached));
        }
    }
}
