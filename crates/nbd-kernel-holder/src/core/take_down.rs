//! Taking a device down, whatever state it is in, within a bound: the lanes first, so that no process can
//! block on them; then the driver's side; then the backends; then its entry.

use std::time::{Duration, Instant};

use nbd_device_users::User;

use super::attach::AttachError;
use super::detach::{DetachError, Requester};
use super::ownership;
use super::{
    Command, Condition, Core, End, Event, Failed, HelperId, HelperTask, Note, Procedure, Refused,
    Reply, Report, Sitter, Watch,
};

/// How long the steps may take together. The last ones get a little time whatever the others took, so
/// that all ends within 10 s.
const TIMEOUT: Duration = Duration::from_millis(7500);
/// How long each step may take before the next, harder one …
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// … and the least time for it, whatever the steps before it took.
const MIN_STEP_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a backend may take to end by itself in a detach in order: nbd-serve gives another server
/// 5 s to close its connections, and a program that it has started as long to end after SIGTERM.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the driver's lock may be held by what does not wait for a backend.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a killed sitter may take to leave its wait.
const SITTER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long users that have seen the end of the device may take to close it before the next look.
const CLEAR_INTERVAL: Duration = Duration::from_millis(100);
/// No descriptor tells of changes in /sys.
const INTERVAL: Duration = Duration::from_millis(2);
/// How often to look whether the owner is stopped, and how often in a row, to be sure: under strace a
/// process is stopped for a moment at each system call.
const STOPPED_INTERVAL: Duration = Duration::from_millis(20);
const STOPPED_LOOKS: u32 = 5;

/// What the driver has made of a device that was taken down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// It is free.
    Clear,
    /// It has no connection any more, and is free when these users have closed it.
    InUse(Vec<User>),
}

/// Why it is taken down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// `given_up` requests are failed by that.
    Detach {
        requester: Requester,
        given_up: usize,
    },
    Dropped,
    /// The attach has come to nothing.
    NotAttached(AttachError),
}

/// A device that is being taken down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TakeDown {
    cause: Cause,
    begun: Instant,
    step: Step,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Counting what has to be answered.
    Surveying,
    /// Finding out whether the driver holds its lock.
    TryingLock {
        helper: HelperId,
        until: Instant,
        unanswered: bool,
    },
    /// A signal has the driver fail what is in flight without its lock, but only as long as the lanes are
    /// open: otherwise the ioctl returns by itself, and waits for the lock.
    InterruptingSitter {
        until: Instant,
    },
    /// Telling the driver to disconnect; `then` tells which time it is.
    Disconnecting {
        helper: HelperId,
        until: Instant,
        then: Then,
    },
    AwaitingSitter {
        until: Instant,
        is_last: bool,
    },
    AwaitingClear {
        until: Instant,
    },
    /// Users that have seen its end only have to close it.
    FindingUsers {
        helper: HelperId,
        until: Instant,
    },
    AwaitingClose {
        until: Instant,
        lasting: bool,
    },
    /// Whether the driver itself still waits for something.
    AwaitingQuiet {
        until: Instant,
    },
    AwaitingNoSizeChange,
    FindingRemainingUsers {
        helper: HelperId,
        until: Instant,
    },
    /// The backend may close its own connections.
    AwaitingOwner {
        released: Released,
        in_order: bool,
        stopped: u32,
    },
    AwaitingProcesses {
        released: Released,
        until: Instant,
    },
    Restoring {
        released: Released,
        helper: HelperId,
        until: Instant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    KillSitter,
    KillSitterAgain,
    AwaitUsers,
}

impl TakeDown {
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.step {
            Step::Surveying | Step::AwaitingNoSizeChange => None,
            Step::TryingLock { until, .. }
            | Step::InterruptingSitter { until }
            | Step::Disconnecting { until, .. }
            | Step::AwaitingSitter { until, .. }
            | Step::AwaitingClear { until }
            | Step::FindingUsers { until, .. }
            | Step::AwaitingClose { until, .. }
            | Step::AwaitingQuiet { until }
            | Step::FindingRemainingUsers { until, .. }
            | Step::AwaitingProcesses { until, .. }
            | Step::Restoring { until, .. } => Some(*until),
            Step::AwaitingOwner { in_order, .. } => Some(self.begun + leave_timeout(*in_order)),
        }
    }

    /// It is what another program has left of the device.
    pub(super) fn is_clearing(&self) -> bool {
        self.cause == Cause::Dropped
    }

    pub(super) fn watches(&self) -> Vec<Watch> {
        let (conditions, interval): (&[Condition], _) = match self.step {
            Step::InterruptingSitter { .. } => (&[Condition::SitterParked], INTERVAL),
            Step::AwaitingClear { .. } | Step::AwaitingClose { .. } => {
                (&[Condition::Clear], INTERVAL)
            }
            Step::AwaitingQuiet { .. } => (&[Condition::Quiet], INTERVAL),
            Step::AwaitingNoSizeChange => (&[Condition::NoSizeChange], INTERVAL),
            Step::AwaitingOwner { .. } => {
                (&[Condition::OwnerGone, Condition::OwnerStopped], STOPPED_INTERVAL)
            }
            Step::AwaitingProcesses { .. } => (&[Condition::NoProcesses], INTERVAL),
            _ => (&[], INTERVAL),
        };
        conditions.iter().map(|&condition| Watch { condition, interval }).collect()
    }
}

fn leave_timeout(in_order: bool) -> Duration {
    if in_order { LEAVE_TIMEOUT } else { STEP_TIMEOUT }
}

impl Core {
    pub(super) fn begin_take_down(&mut self, cause: Cause) -> Procedure {
        let given_up = match &cause {
            Cause::Detach { given_up, .. } => *given_up,
            Cause::Dropped | Cause::NotAttached(_) => 0,
        };
        if cause == Cause::Dropped {
            self.note(Note::Dropped);
        }
        // The counts are the ledger's, which is let go of.
        self.command(Command::NoteTotals { given_up });
        self.command(Command::Survey { note: true });
        Procedure::TakeDown(TakeDown { cause, begun: self.now, step: Step::Surveying })
    }

    pub(super) fn step_take_down(&mut self, down: TakeDown, event: &Event) -> Procedure {
        let TakeDown { cause, begun, step } = down;
        match self.next_step(step, &cause, begun, event) {
            Next::Step(step) => Procedure::TakeDown(TakeDown { cause, begun, step }),
            Next::Refused(error) => self.not_taken_down(cause, error),
            Next::Done(released) => self.taken_down(cause, released),
        }
    }

    fn next_step(&mut self, step: Step, cause: &Cause, begun: Instant, event: &Event) -> Next {
        let deadline = begun + TIMEOUT;
        let left = left(deadline, self.now);
        let now = self.now;
        let is_late = |until: Instant| now >= until;
        Next::Step(match step {
            Step::Surveying => match event {
                Event::Surveyed(survey) => {
                    let unanswered = survey.waiting || survey.in_flight > 0;
                    let may_hold_lock =
                        self.config.netlink && self.attached && self.failed.is_none();
                    if !(may_hold_lock && unanswered) {
                        return self.interrupt_sitter(unanswered, cause, deadline);
                    }
                    let helper = self.start_helper(HelperTask::TryLock);
                    Step::TryingLock { helper, until: self.after(LOCK_TIMEOUT), unanswered }
                }
                _ => Step::Surveying,
            },
            Step::TryingLock { helper, until, unanswered } => match event {
                Event::HelperEnded { id, .. } if *id == helper => {
                    return self.interrupt_sitter(unanswered, cause, deadline);
                }
                _ if is_late(until) => {
                    self.command(Command::LeaveHelper { id: helper });
                    return Next::Refused(DetachError::Unreachable);
                }
                _ => Step::TryingLock { helper, until, unanswered },
            },
            Step::InterruptingSitter { until } => {
                let parked = Event::Seen { condition: Condition::SitterParked, holds: true };
                if *event == parked || self.driver.sitter == Sitter::Gone || is_late(until) {
                    return self.end_lanes(deadline);
                }
                Step::InterruptingSitter { until }
            }
            Step::Disconnecting { helper, until, then } => {
                if !self.is_helper_over(helper, until, event) {
                    Step::Disconnecting { helper, until, then }
                } else if then == Then::AwaitUsers {
                    self.find_users(left)
                } else {
                    self.command(Command::KillSitter);
                    self.await_sitter(then == Then::KillSitterAgain, left)
                }
            }
            Step::AwaitingSitter { until, is_last } => {
                if self.driver.sitter == Sitter::Gone || (is_late(until) && is_last) {
                    Step::AwaitingClear { until: self.after(left) }
                } else if is_late(until) {
                    self.note(Note::DriverSlow);
                    self.disconnect(Then::KillSitterAgain, left)
                } else {
                    Step::AwaitingSitter { until, is_last }
                }
            }
            Step::AwaitingClear { until } => {
                if is_clear(event) {
                    return self.release(Released::Clear, cause, deadline);
                }
                match (is_late(until), self.driver.sitter == Sitter::Gone) {
                    (false, _) => Step::AwaitingClear { until },
                    (true, false) => Step::AwaitingQuiet { until: self.after(left) },
                    // A sitter that was killed has not cleared it.
                    (true, true) if !self.config.netlink => self.disconnect(Then::AwaitUsers, left),
                    (true, true) => self.find_users(left),
                }
            }
            Step::FindingUsers { helper, until } => match self.found_users(helper, until, event) {
                Some(users) => {
                    let lasting = users.iter().any(|user| !user.may_pass);
                    Step::AwaitingClose { until: self.after(CLEAR_INTERVAL), lasting }
                }
                None => Step::FindingUsers { helper, until },
            },
            Step::AwaitingClose { until, lasting } => {
                if is_clear(event) {
                    return self.release(Released::Clear, cause, deadline);
                }
                match is_late(until) {
                    false => Step::AwaitingClose { until, lasting },
                    true if lasting || self.now + CLEAR_INTERVAL >= deadline => {
                        Step::AwaitingQuiet { until: self.after(left) }
                    }
                    true => self.find_users(left),
                }
            }
            Step::AwaitingQuiet { until } => {
                let quiet = Event::Seen { condition: Condition::Quiet, holds: true };
                if *event == quiet && self.driver.sitter == Sitter::Gone {
                    Step::AwaitingNoSizeChange
                } else if is_late(until) || *event == quiet {
                    return Next::Refused(DetachError::Stuck);
                } else {
                    Step::AwaitingQuiet { until }
                }
            }
            Step::AwaitingNoSizeChange => match event {
                Event::Seen { condition: Condition::NoSizeChange, holds: true } => {
                    let helper = self.start_helper(HelperTask::FindUsers);
                    Step::FindingRemainingUsers { helper, until: self.after(left) }
                }
                Event::Seen { condition: Condition::NoSizeChange, holds: false } => {
                    return Next::Refused(DetachError::Stuck);
                }
                _ => Step::AwaitingNoSizeChange,
            },
            Step::FindingRemainingUsers { helper, until } => {
                match self.found_users(helper, until, event) {
                    Some(users) => return self.release(Released::InUse(users), cause, deadline),
                    None => Step::FindingRemainingUsers { helper, until },
                }
            }
            Step::AwaitingOwner { released, in_order, stopped } => {
                let in_order = in_order && !self.is_forced();
                let stopped = match event {
                    Event::Seen { condition: Condition::OwnerStopped, holds } => {
                        if *holds {
                            stopped + 1
                        } else {
                            0
                        }
                    }
                    _ => stopped,
                };
                let gone = Event::Seen { condition: Condition::OwnerGone, holds: true };
                let is_over = *event == gone || stopped >= STOPPED_LOOKS;
                let is_too_late = is_late(begun + leave_timeout(in_order));
                if is_over || is_too_late {
                    if is_too_late || stopped > 0 {
                        self.note(Note::OwnerKilledLate);
                    }
                    self.end_backends(released, left)
                } else {
                    Step::AwaitingOwner { released, in_order, stopped }
                }
            }
            Step::AwaitingProcesses { released, until } => {
                let dead = Event::Seen { condition: Condition::NoProcesses, holds: true };
                if *event != dead && !is_late(until) {
                    Step::AwaitingProcesses { released, until }
                } else {
                    if *event != dead {
                        self.note(Note::ProcessesLate);
                    }
                    if !self.driver.silenced {
                        return Next::Done(released);
                    }
                    // A store to `queue/` may wait for requests that nothing answers.
                    let helper = self.start_helper(HelperTask::RestoreTimeouts);
                    Step::Restoring { released, helper, until: self.after(left) }
                }
            }
            Step::Restoring { released, helper, until } => {
                if !self.is_helper_over(helper, until, event) {
                    return Next::Step(Step::Restoring { released, helper, until });
                }
                let status = match event {
                    Event::HelperEnded { id, report: Report::Status(status) } if *id == helper => {
                        Some(*status)
                    }
                    _ => None,
                };
                if status != Some(0) {
                    self.note(Note::TimeoutsNotRestored { status });
                }
                return Next::Done(released);
            }
        })
    }

    fn interrupt_sitter(&mut self, unanswered: bool, cause: &Cause, deadline: Instant) -> Next {
        self.attached = false;
        self.timers.restart = None;
        // A sitter that another program keeps from its device has nothing to fail.
        let is_attach = matches!(cause, Cause::NotAttached(_));
        let sits = self.driver.sitter == Sitter::Sits && !self.config.netlink && !is_attach;
        let given_up = self.ownership.is_abandoned() && self.failed.is_none();
        if sits && given_up && unanswered {
            self.command(Command::KillSitter);
            return Next::Step(Step::InterruptingSitter { until: self.after(SITTER_TIMEOUT) });
        }
        self.end_lanes(deadline)
    }

    fn end_lanes(&mut self, deadline: Instant) -> Next {
        self.command(Command::EndLanes);
        self.drop_fail_order();
        self.apply(&ownership::Event::ShutDown);
        let left = left(deadline, self.now);
        if self.driver.sitter == Sitter::None {
            return self.release_at(Released::Clear, deadline, false);
        }
        if !self.config.netlink {
            return Next::Step(self.await_sitter(false, left));
        }
        // Not a second time, which the driver would complain of in the kernel's log.
        if self.driver.disconnected {
            self.command(Command::KillSitter);
            return Next::Step(self.await_sitter(false, left));
        }
        Next::Step(self.disconnect(Then::KillSitter, left))
    }

    fn disconnect(&mut self, then: Then, limit: Duration) -> Step {
        let helper = self.start_helper(HelperTask::Disconnect);
        Step::Disconnecting { helper, until: self.after(limit), then }
    }

    fn await_sitter(&mut self, is_last: bool, limit: Duration) -> Step {
        match self.driver.sitter {
            Sitter::Gone => Step::AwaitingClear { until: self.after(limit) },
            _ => Step::AwaitingSitter { until: self.after(limit), is_last },
        }
    }

    fn find_users(&mut self, limit: Duration) -> Step {
        let helper = self.start_helper(HelperTask::FindUsers);
        Step::FindingUsers { helper, until: self.after(limit) }
    }

    /// As far as that can be told in time.
    fn found_users(
        &mut self,
        helper: HelperId,
        until: Instant,
        event: &Event,
    ) -> Option<Vec<User>> {
        match event {
            Event::HelperEnded { id, report } if *id == helper => Some(match report {
                Report::Users(Ok(users)) => users.clone(),
                _ => Vec::new(),
            }),
            _ if self.now >= until => {
                self.command(Command::LeaveHelper { id: helper });
                Some(Vec::new())
            }
            _ => None,
        }
    }

    fn release(&mut self, released: Released, cause: &Cause, deadline: Instant) -> Next {
        let is_detach = matches!(cause, Cause::Detach { .. });
        self.release_at(released, deadline, is_detach)
    }

    /// The driver has let go. The backend's lanes are at their end, which is how it knows.
    fn release_at(&mut self, released: Released, deadline: Instant, is_detach: bool) -> Next {
        self.command(Command::CloseJoin);
        // One that has not begun to serve would not end by itself.
        let serves = self.ownership.is_ready() && !self.owner_exit.has_departed();
        if !serves {
            let left = left(deadline, self.now);
            return Next::Step(self.end_backends(released, left));
        }
        let in_order = is_detach && self.owner_exit.is_leaving() && !self.is_forced();
        Next::Step(Step::AwaitingOwner { released, in_order, stopped: 0 })
    }

    fn end_backends(&mut self, released: Released, limit: Duration) -> Step {
        self.command(Command::KillBackends);
        Step::AwaitingProcesses { released, until: self.after(limit) }
    }

    fn taken_down(&mut self, cause: Cause, released: Released) -> Procedure {
        let end = match cause {
            Cause::Detach { .. } => {
                self.note(Note::Detached(released.clone()));
                self.command(Command::RemoveEntry);
                if let Some(order) = self.orders.detach.take() {
                    self.reply(order.client, Reply::Detached(released.clone()));
                }
                self.reply_all_waiting(&Reply::Refused(Refused::BeingDetached));
                End::Detached(released)
            }
            Cause::Dropped => {
                self.left_in_use(&released);
                self.command(Command::RemoveEntry);
                self.say_dropped();
                End::Dropped
            }
            Cause::NotAttached(error) => {
                self.left_in_use(&released);
                self.command(Command::RemoveEntry);
                self.say_not_attached();
                End::NotAttached(error)
            }
        };
        Procedure::Ended(end)
    }

    fn left_in_use(&mut self, released: &Released) {
        if let Released::InUse(users) = released {
            self.note(Note::Kept(users.clone()));
        }
    }

    fn say_dropped(&mut self) {
        if let Some(order) = self.orders.detach.take() {
            self.reply(order.client, Reply::DetachedDropped);
        }
        self.reply_all_waiting(&Reply::Dropped);
    }

    fn say_not_attached(&mut self) {
        let reply = Reply::Refused(Refused::NotAttachedYet);
        if let Some(order) = self.orders.detach.take() {
            self.reply(order.client, reply.clone());
        }
        self.reply_all_waiting(&reply);
    }

    /// The driver does not let go: the holder stays, with what it has, to try again; unless there is
    /// nothing to stay for.
    fn not_taken_down(&mut self, cause: Cause, error: DetachError) -> Procedure {
        match cause {
            Cause::Detach { requester, .. } => {
                if error == DetachError::Stuck {
                    self.failed = Some(Failed::Stuck);
                    self.note(Note::Stuck);
                }
                self.attached = true;
                self.refuse_detach(requester, error)
            }
            Cause::Dropped => {
                self.note(Note::Left(error));
                self.say_dropped();
                Procedure::Ended(End::Dropped)
            }
            Cause::NotAttached(why) => {
                self.note(Note::Left(error));
                self.say_not_attached();
                Procedure::Ended(End::NotAttached(why))
            }
        }
    }
}

enum Next {
    Step(Step),
    Refused(DetachError),
    Done(Released),
}

fn is_clear(event: &Event) -> bool {
    matches!(event, Event::Seen { condition: Condition::Clear, holds: true })
}

/// How long the next step may take.
fn left(deadline: Instant, now: Instant) -> Duration {
    deadline.saturating_duration_since(now).clamp(MIN_STEP_TIMEOUT, STEP_TIMEOUT)
}
