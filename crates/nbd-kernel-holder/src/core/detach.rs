//! The end of a device, in order or by force: what comes before it is taken down.
//!
//! In order nothing is lost: nothing may use the device, its data is written back, and if that does not
//! work it stays as it is. A detach by force may come at any step of one in order, and takes its place.
//!
//! A detach by force has what is in flight answered with EIO first. Newer drivers change the size of a
//! device under their lock and wait there until all that is in flight is answered; once the lanes are
//! shut nothing can be answered any more, and the driver fails what it has sent only when it is told to
//! disconnect, which waits for the same lock.

mod flushing;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use super::event::{
    Command, Condition, DetachError, Event, HelperId, HelperTask, Note, Reply, Survey, UsersUnknown,
};
use super::fail::GRACE;
use super::ownership;
use super::procedure::detach::{Detach, Requester, Step};
use super::procedure::take_down::Cause;
use super::procedure::users::Checked;
use super::procedure::{End, Procedure};
use super::state::Core;
use flushing::Disconnected;

/// How long udev may take to look away. It may not be able to while the backend is stuck.
const UDEV_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a backend may take to answer by itself what it has. One that is well does so at once.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long it may take to kill it, and to have its requests answered in its place.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long the driver may take for a change of the size once all is answered.
const SIZE_CHANGE_TIMEOUT: Duration = Duration::from_secs(2);

impl DetachError {
    /// The driver may have been told to disconnect, or still be.
    fn may_have_told(&self) -> bool {
        matches!(self, Self::NotAnswered | Self::UseUnknown(UsersUnknown::TimedOut(_)))
    }
}

/// What follows from an event.
enum Next {
    Step(Step),
    /// The device stays.
    Refused(DetachError),
    /// `given_up` requests are failed by that.
    TakeDown {
        given_up: usize,
    },
}

impl Core {
    pub(super) fn begin_detach(&mut self, requester: Requester, force: bool) -> Procedure {
        let step = match (force, self.device.failed) {
            (true, _) => self.note_in_flight(),
            // There is nothing to write back to.
            (false, Some(_)) => return self.take_down_detached(requester, self.now, 0),
            (false, None) => Step::CheckingUsers(self.check_users()),
        };
        if requester == Requester::Signal {
            self.note(Note::Stopping);
        }
        Procedure::Detach(Detach { requester, begun: self.now, step })
    }

    fn note_in_flight(&mut self) -> Step {
        self.command(Command::Survey { note: true });
        Step::Noting
    }

    pub(super) fn step_detach(&mut self, detach: Detach, event: &Event) -> Procedure {
        let is_new_force = self.is_forced() && !detach.is_by_force();
        let Detach { mut requester, mut begun, step } = detach;
        if is_new_force {
            // What was told to stop still is, if that fails.
            self.orders.stop |= requester == Requester::Signal;
            (requester, begun) = (Requester::Client, self.now);
        }
        let next = match step.helper() {
            helper if is_new_force => Next::Step(self.force(helper)),
            _ => self.next_detach(step, event),
        };
        match next {
            Next::Step(step) => Procedure::Detach(Detach { requester, begun, step }),
            Next::Refused(error) => self.refuse_detach(requester, error),
            Next::TakeDown { given_up } => self.take_down_detached(requester, begun, given_up),
        }
    }

    fn next_detach(&mut self, step: Step, event: &Event) -> Next {
        match step {
            Step::CheckingUsers(_)
            | Step::Leaving { .. }
            | Step::Flushing(_)
            | Step::CheckingAgain(_)
            | Step::Staying { .. } => self.step_in_order(step, event),
            Step::Noting
            | Step::Draining { .. }
            | Step::Abandoning { .. }
            | Step::AwaitingSizeChange { .. } => self.step_by_force(step, event),
        }
    }

    fn step_in_order(&mut self, step: Step, event: &Event) -> Next {
        Next::Step(match step {
            Step::CheckingUsers(check) => match self.step_users(check, event) {
                Checked::NotYet(check) => Step::CheckingUsers(check),
                Checked::Unused => {
                    let helper = self.start_helper(HelperTask::TellUdev { leaving: true });
                    Step::Leaving { helper, until: self.after(UDEV_TIMEOUT) }
                }
                Checked::Used(users) => {
                    return Next::Refused(DetachError::InUse(users));
                }
                Checked::Unknown(why) => {
                    return Next::Refused(DetachError::UseUnknown(why));
                }
            },
            Step::CheckingAgain(check) => match self.step_users(check, event) {
                Checked::NotYet(check) => Step::CheckingAgain(check),
                Checked::Unused => self.stay(DetachError::Claimed),
                Checked::Used(users) => self.stay(DetachError::InUse(users)),
                Checked::Unknown(why) => self.stay(DetachError::UseUnknown(why)),
            },
            Step::Leaving { helper, until } => match self.is_helper_over(helper, until, event) {
                true => self.flush(),
                false => Step::Leaving { helper, until },
            },
            Step::Flushing(flushing) => match self.step_flush(flushing, event) {
                Ok(step) => step,
                Err(Disconnected) => return Next::TakeDown { given_up: 0 },
            },
            Step::Staying { helper, until, error } => {
                match self.is_helper_over(helper, until, event) {
                    true => return Next::Refused(error),
                    false => Step::Staying { helper, until, error },
                }
            }
            other => other,
        })
    }

    fn step_by_force(&mut self, step: Step, event: &Event) -> Next {
        Next::Step(match step {
            Step::Noting => match event {
                Event::Surveyed(survey) => match self.begin_answering(survey) {
                    Some(step) => step,
                    None => {
                        return Next::TakeDown { given_up: survey.in_flight };
                    }
                },
                _ => Step::Noting,
            },
            Step::Draining { until, given_up } => match event {
                Event::Seen { condition: Condition::NotedAnswered, holds: true } => {
                    self.await_size_change(given_up)
                }
                _ if self.is_late(until) => self.abandon(given_up),
                _ => Step::Draining { until, given_up },
            },
            Step::Abandoning { until, given_up } => self.step_abandon(until, given_up, event),
            Step::AwaitingSizeChange { until, given_up } => match event {
                Event::Seen { condition: Condition::NoSizeChange, holds: true } => {
                    return Next::TakeDown { given_up };
                }
                _ if self.is_late(until) => {
                    return Next::TakeDown { given_up };
                }
                _ => Step::AwaitingSizeChange { until, given_up },
            },
            other => other,
        })
    }

    /// A detach by force takes the place of one in order.
    fn force(&mut self, helper: Option<HelperId>) -> Step {
        if let Some(id) = helper {
            // Killed, so that it does not disconnect long after we said that it did not.
            self.command(Command::LeaveHelper { id });
        }
        self.note_in_flight()
    }

    fn stay(&mut self, error: DetachError) -> Step {
        self.stop_leaving(error.may_have_told());
        let helper = self.start_helper(HelperTask::TellUdev { leaving: false });
        Step::Staying { helper, until: self.after(UDEV_TIMEOUT), error }
    }

    /// What is in flight is answered, by the backend if it does, otherwise with EIO in its place.
    fn begin_answering(&mut self, survey: &Survey) -> Option<Step> {
        if self.device.failed.is_some() || self.ownership.is_shutting_down() {
            return None;
        }
        if survey.in_flight == 0 && !survey.waiting && !survey.size_change {
            return None;
        }
        let given_up = survey.in_flight;
        let served = self.ownership.is_ready() && !survey.owner_stopped;
        if served && survey.in_flight > 0 {
            return Some(Step::Draining { until: self.after(DRAIN_TIMEOUT), given_up });
        }
        Some(self.abandon(given_up))
    }

    /// From now on all that comes is answered with EIO, until the lanes end.
    fn abandon(&mut self, given_up: usize) -> Step {
        self.drop_fail_order();
        self.apply(&ownership::Event::Abandon);
        self.bury_departed();
        Step::Abandoning { until: self.after(ANSWER_TIMEOUT), given_up }
    }

    /// When the EIO backend has answered for long enough that only what was noted counts.
    pub(super) fn eio_is_enough(&self) -> Option<Instant> {
        self.timers.eio_since.map(|since| since + GRACE)
    }

    fn step_abandon(&mut self, until: Instant, given_up: usize, event: &Event) -> Step {
        let enough = self.eio_is_enough().is_some_and(|enough| self.is_late(enough));
        let is_answered = match event {
            Event::Seen { condition: Condition::NotedAnsweredAndQuiet, holds } => *holds,
            Event::Seen { condition: Condition::NotedAnswered, holds } => *holds && enough,
            _ => false,
        };
        if !is_answered && !self.is_late(until) {
            return Step::Abandoning { until, given_up };
        }
        if !is_answered {
            self.note(Note::Unanswered);
        }
        self.await_size_change(given_up)
    }

    /// It could go on only now.
    fn await_size_change(&mut self, given_up: usize) -> Step {
        Step::AwaitingSizeChange { until: self.after(SIZE_CHANGE_TIMEOUT), given_up }
    }

    fn take_down_detached(
        &mut self,
        requester: Requester,
        begun: Instant,
        given_up: usize,
    ) -> Procedure {
        let by_force = self.is_forced();
        // One in order may take its time to write back.
        let begun = if by_force { begun } else { self.now };
        self.begin_take_down(Cause::Detach { requester, by_force, begun, given_up })
    }

    /// The device stays.
    pub(super) fn refuse_detach(&mut self, requester: Requester, error: DetachError) -> Procedure {
        if let Some(order) = self.orders.detach.take() {
            self.reply(order.client, Reply::NotDetached(error.clone()));
        }
        match requester {
            Requester::Client => Procedure::Idle,
            Requester::Signal => {
                self.reply_all_waiting(&Reply::NotDetached(error.clone()));
                self.note(Note::NotStopped(error.clone()));
                Procedure::Ended(End::Stopped(error))
            }
        }
    }
}
