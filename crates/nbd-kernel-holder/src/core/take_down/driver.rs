//! The driver's side of a take-down: it lets go of the device, or is in the middle of something that keeps
//! it.

use std::time::{Duration, Instant};

use crate::core::event::{Command, Condition, DetachError, Event, HelperTask, Note, Released};
use crate::core::ownership;
use crate::core::procedure::limits::left;
use crate::core::procedure::releasing::{Releasing, Then};
use crate::core::state::{Core, Sitter};

/// How long the driver's lock may be held by what does not wait for a backend.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a killed sitter may take to leave its wait.
const SITTER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long users that have seen the end of the device may take to close it before the next look.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

pub(super) enum Next {
    Step(Releasing),
    Released(Released),
    /// The driver does not let go.
    Stays(DetachError),
}

impl Core {
    pub(super) fn begin_release(&mut self) -> Releasing {
        self.command(Command::Survey { note: true });
        Releasing::Surveying
    }

    pub(super) fn step_release(
        &mut self,
        step: Releasing,
        deadline: Instant,
        event: &Event,
    ) -> Next {
        use Releasing::{
            AwaitingClear, AwaitingClose, AwaitingNoSizeChange, AwaitingQuiet, AwaitingSitter,
            Disconnecting, FindingRemainingUsers, FindingUsers, InterruptingSitter, Surveying,
            TryingLock,
        };
        let left = left(deadline, self.now);
        match step {
            Surveying | TryingLock { .. } | InterruptingSitter { .. } => {
                self.step_before_end_of_lanes(step, left, event)
            }
            Disconnecting { .. } | AwaitingSitter { .. } => {
                Next::Step(self.step_disconnect(step, left, event))
            }
            AwaitingClear { .. } | FindingUsers { .. } | AwaitingClose { .. } => {
                self.step_clear(step, deadline, event)
            }
            AwaitingQuiet { .. } | AwaitingNoSizeChange { .. } | FindingRemainingUsers { .. } => {
                self.step_remaining(step, left, event)
            }
        }
    }

    fn step_before_end_of_lanes(&mut self, step: Releasing, left: Duration, event: &Event) -> Next {
        match step {
            Releasing::Surveying => match event {
                Event::Surveyed(survey) => {
                    let unanswered = survey.waiting || survey.in_flight > 0;
                    self.try_lock(unanswered, left)
                }
                _ => Next::Step(step),
            },
            Releasing::TryingLock { helper, until, unanswered } => match event {
                Event::HelperEnded { id, .. } if *id == helper => {
                    self.interrupt_sitter(unanswered, left)
                }
                _ if self.is_late(until) => {
                    self.command(Command::LeaveHelper { id: helper });
                    Next::Stays(DetachError::Unreachable)
                }
                _ => Next::Step(step),
            },
            Releasing::InterruptingSitter { until } => {
                let parked = Event::Seen { condition: Condition::SitterParked, holds: true };
                let is_gone = self.device.sitter == Sitter::Gone;
                match *event == parked || is_gone || self.is_late(until) {
                    true => self.end_lanes(left),
                    false => Next::Step(step),
                }
            }
            other => Next::Step(other),
        }
    }

    /// While the driver waits for an answer under its lock, nothing else than an answer reaches a netlink
    /// device, so its lanes must stay open.
    fn try_lock(&mut self, unanswered: bool, left: Duration) -> Next {
        let serves = self.device.attached && self.device.failed.is_none();
        if !(self.config.netlink && serves && unanswered) {
            return self.interrupt_sitter(unanswered, left);
        }
        let helper = self.start_helper(HelperTask::TryLock);
        Next::Step(Releasing::TryingLock { helper, until: self.after(LOCK_TIMEOUT), unanswered })
    }

    fn interrupt_sitter(&mut self, unanswered: bool, left: Duration) -> Next {
        self.device.attached = false;
        self.timers.restart = None;
        let sits = self.device.sitter == Sitter::Sits && !self.config.netlink;
        let given_up = self.ownership.is_abandoned() && self.device.failed.is_none();
        if sits && given_up && unanswered {
            self.command(Command::KillSitter);
            return Next::Step(Releasing::InterruptingSitter { until: self.after(SITTER_TIMEOUT) });
        }
        self.end_lanes(left)
    }

    fn end_lanes(&mut self, left: Duration) -> Next {
        self.command(Command::EndLanes);
        self.note_end_of_lanes();
        self.drop_fail_order();
        self.apply(&ownership::Event::ShutDown);
        if self.device.sitter == Sitter::None {
            return Next::Released(Released::Clear);
        }
        Next::Step(match (self.config.netlink, self.device.disconnected) {
            (false, _) => self.await_sitter(false, left),
            // Not a second time, which the driver would complain of in the kernel's log.
            (true, true) => {
                self.command(Command::KillSitter);
                self.await_sitter(false, left)
            }
            (true, false) => self.disconnect(Then::KillSitter, left),
        })
    }

    fn disconnect(&mut self, then: Then, limit: Duration) -> Releasing {
        let helper = self.start_helper(HelperTask::Disconnect);
        Releasing::Disconnecting { helper, until: self.after(limit), then }
    }

    fn await_sitter(&mut self, is_last: bool, limit: Duration) -> Releasing {
        let until = self.after(limit);
        match self.device.sitter {
            Sitter::Gone => Releasing::AwaitingClear { until },
            Sitter::None | Sitter::Sits => Releasing::AwaitingSitter { until, is_last },
        }
    }

    fn step_disconnect(&mut self, step: Releasing, left: Duration, event: &Event) -> Releasing {
        match step {
            Releasing::Disconnecting { helper, until, then } => {
                if !self.is_helper_over(helper, until, event) {
                    return step;
                }
                if then == Then::AwaitUsers {
                    return self.find_users(left);
                }
                self.command(Command::KillSitter);
                self.await_sitter(then == Then::KillSitterAgain, left)
            }
            Releasing::AwaitingSitter { until, is_last } => {
                let is_late = self.is_late(until);
                if self.device.sitter == Sitter::Gone || (is_late && is_last) {
                    return Releasing::AwaitingClear { until: self.after(left) };
                }
                if !is_late {
                    return step;
                }
                self.note(Note::DriverSlow);
                self.disconnect(Then::KillSitterAgain, left)
            }
            other => other,
        }
    }

    fn find_users(&mut self, limit: Duration) -> Releasing {
        let helper = self.start_helper(HelperTask::FindUsers);
        Releasing::FindingUsers { helper, until: self.after(limit) }
    }

    fn step_clear(&mut self, step: Releasing, deadline: Instant, event: &Event) -> Next {
        let left = left(deadline, self.now);
        let clear = Event::Seen { condition: Condition::Clear, holds: true };
        let is_gone = self.device.sitter == Sitter::Gone;
        Next::Step(match step {
            Releasing::FindingUsers { helper, mut until } => {
                match self.found_users(helper, &mut until, event) {
                    Some(users) => {
                        let lasting = users.iter().any(|user| !user.may_pass);
                        Releasing::AwaitingClose { until: self.after(CLOSE_TIMEOUT), lasting }
                    }
                    None => Releasing::FindingUsers { helper, until },
                }
            }
            _ if *event == clear => return Next::Released(Released::Clear),
            Releasing::AwaitingClear { until } if self.is_late(until) => {
                match (is_gone, self.config.netlink) {
                    (false, _) => Releasing::AwaitingQuiet { until: self.after(left) },
                    // A sitter that was killed has not cleared it.
                    (true, false) => self.disconnect(Then::AwaitUsers, left),
                    (true, true) => self.find_users(left),
                }
            }
            Releasing::AwaitingClose { until, lasting } if self.is_late(until) => {
                match lasting || self.now + CLOSE_TIMEOUT >= deadline {
                    true => Releasing::AwaitingQuiet { until: self.after(left) },
                    false => self.find_users(left),
                }
            }
            other => other,
        })
    }

    /// It is not clear: because of its users, or does the driver itself still wait for something?
    fn step_remaining(&mut self, step: Releasing, left: Duration, event: &Event) -> Next {
        match (step, event) {
            (
                Releasing::AwaitingQuiet { .. },
                Event::Seen { condition: Condition::Quiet, holds: true },
            ) => match self.device.sitter {
                Sitter::Gone => {
                    Next::Step(Releasing::AwaitingNoSizeChange { until: self.after(left) })
                }
                Sitter::None | Sitter::Sits => Next::Stays(DetachError::Stuck),
            },
            (Releasing::AwaitingQuiet { until } | Releasing::AwaitingNoSizeChange { until }, _)
                if self.is_late(until) =>
            {
                Next::Stays(DetachError::Stuck)
            }
            (
                Releasing::AwaitingNoSizeChange { .. },
                Event::Seen { condition: Condition::NoSizeChange, holds },
            ) => match holds {
                true => {
                    let helper = self.start_helper(HelperTask::FindUsers);
                    let until = self.after(left);
                    Next::Step(Releasing::FindingRemainingUsers { helper, until })
                }
                false => Next::Stays(DetachError::Stuck),
            },
            (Releasing::FindingRemainingUsers { helper, mut until }, _) => {
                match self.found_users(helper, &mut until, event) {
                    Some(users) => Next::Released(Released::InUse(users)),
                    None => Next::Step(Releasing::FindingRemainingUsers { helper, until }),
                }
            }
            (step, _) => Next::Step(step),
        }
    }
}
