//! Another size for a device that is in use.
//!
//! At no time is the device larger than what its backend serves. To grow, a backend that has looked
//! at its storage anew comes first, in the way of every replacement, and then the driver is told. To
//! shrink, the driver is told, and the backend may go on serving more than that.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::event::{
    BackendId, Command, Condition, Event, HelperTask, Note, Reply, Report, ResizeError, Resized,
    Survey,
};
use super::ownership;
use super::procedure::Procedure;
use super::procedure::resize::{Plan, Resize, ResizeOrder, Sizes, Step};
use super::procedure::users::Checked;
use super::state::{Core, Probe};

/// A request that has waited for so many milliseconds may wait for ever, and newer drivers wait for
/// all of them before they take another size.
const MAX_AGE_MS: u64 = 5_000;
/// How long a backend may take to look at its storage and come into its predecessor's place.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(45);
/// How long the driver may take.
pub(crate) const DRIVER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests that are in flight may take to be answered before the driver is told.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long udev may take to look at the device again. Late is no failure.
const UDEV_TIMEOUT: Duration = Duration::from_secs(3);

/// The step that follows; none when it is done.
type Next = Result<Option<Step>, ResizeError>;

impl Core {
    pub(super) fn begin_resize(&mut self, order: ResizeOrder) -> Procedure {
        self.command(Command::Survey { note: false });
        let plan = Plan { order, sizes: Sizes::default() };
        Procedure::Resize(Resize { plan, step: Step::Surveying })
    }

    pub(super) fn step_resize(&mut self, resize: Resize, event: &Event) -> Procedure {
        let Resize { mut plan, step } = resize;
        if let (Step::Surveying, Event::Surveyed(survey)) = (&step, event) {
            plan.sizes = Sizes { shown: survey.size, written: survey.written_size };
        }
        match self.next_resize(plan, step, event) {
            Ok(Some(step)) => Procedure::Resize(Resize { plan, step }),
            Ok(None) => Procedure::Idle,
            Err(error) => {
                self.backends.probe = None;
                self.orders.resize = None;
                self.note(Note::NotResized(error.clone()));
                self.reply(plan.order.client, Reply::NotResized(error));
                Procedure::Idle
            }
        }
    }

    fn next_resize(&mut self, plan: Plan, step: Step, event: &Event) -> Next {
        match step {
            Step::Surveying
            | Step::Probing { .. }
            | Step::CheckingUsers { .. }
            | Step::Persisting { .. } => self.prepare_resize(plan, step, event),
            Step::Noting { .. }
            | Step::Answering { .. }
            | Step::Telling { .. }
            | Step::AwaitingSize { .. }
            | Step::SettlingUdev { .. } => self.tell_size(plan, step, event),
        }
    }

    /// Before the driver is told.
    fn prepare_resize(&mut self, plan: Plan, step: Step, event: &Event) -> Next {
        Ok(Some(match step {
            Step::Surveying => match event {
                Event::Surveyed(survey) => return self.plan(plan, survey),
                _ => Step::Surveying,
            },
            Step::Probing { until } => match self.probed(until)? {
                None => Step::Probing { until },
                Some(offered) => {
                    self.backends.probe = None;
                    if let Some(wanted) = plan.order.size.filter(|wanted| offered < *wanted) {
                        return Err(ResizeError::TooSmall { offered, wanted });
                    }
                    return self.choose(plan, plan.order.size.unwrap_or(offered));
                }
            },
            Step::CheckingUsers { check, .. } if self.is_forced() => {
                if let Some(id) = check.helper() {
                    self.command(Command::LeaveHelper { id });
                }
                return Err(ResizeError::BeingDetached);
            }
            Step::CheckingUsers { check, size } => match self.step_users(check, event) {
                Checked::NotYet(check) => Step::CheckingUsers { check, size },
                Checked::Unused => self.note_before_telling(size),
                Checked::Used(users) => return Err(ResizeError::InUse { users, size }),
                Checked::Unknown(why) => return Err(ResizeError::UseUnknown(why)),
            },
            Step::Persisting { revision, size } => match self.is_saved(revision, event) {
                None => Step::Persisting { revision, size },
                Some(true) => self.note_before_telling(size),
                Some(false) => {
                    self.command(Command::SetSize { size: plan.sizes.written });
                    return Err(ResizeError::NotSaved);
                }
            },
            other => other,
        }))
    }

    /// The driver is told, and shows it.
    fn tell_size(&mut self, plan: Plan, step: Step, event: &Event) -> Next {
        Ok(Some(match step {
            Step::Noting { size } => match event {
                Event::Surveyed(Survey { size_change: true, .. }) => {
                    return Err(self.revert(plan.sizes, size, ResizeError::EarlierChange));
                }
                Event::Surveyed(_) => Step::Answering { until: self.after(ANSWER_TIMEOUT), size },
                _ => Step::Noting { size },
            },
            Step::Answering { until, size } => match event {
                _ if self.is_forced() => {
                    return Err(self.revert(plan.sizes, size, ResizeError::BeingDetached));
                }
                Event::Seen { condition: Condition::NotedAnswered, holds: true } => {
                    let guard = size < plan.sizes.shown && !plan.order.force;
                    let helper = self.start_helper(HelperTask::Resize { size, guard });
                    Step::Telling { helper, until: self.after(DRIVER_TIMEOUT), size }
                }
                _ if self.is_late(until) => {
                    return Err(self.revert(plan.sizes, size, ResizeError::NotAnswered));
                }
                _ => Step::Answering { until, size },
            },
            // What it is about may go on in the driver, which the detach deals with.
            Step::Telling { helper, .. } if self.is_forced() => {
                self.command(Command::LeaveHelper { id: helper });
                return Err(ResizeError::BeingDetached);
            }
            Step::AwaitingSize { .. } if self.is_forced() => {
                return Err(ResizeError::BeingDetached);
            }
            Step::Telling { helper, until, size } => match event {
                Event::HelperEnded { id, report } if *id == helper => {
                    if let Some(error) = told(report, size) {
                        return Err(self.revert(plan.sizes, size, error));
                    }
                    Step::AwaitingSize { until: self.after(DRIVER_TIMEOUT), size }
                }
                _ if self.is_late(until) => {
                    // It may still be done, so a larger size stays written down.
                    self.command(Command::LeaveHelper { id: helper });
                    return Err(ResizeError::DriverLate);
                }
                _ => Step::Telling { helper, until, size },
            },
            Step::AwaitingSize { until, size } => match event {
                Event::Seen { condition: Condition::SizeIs(seen), holds: true }
                    if *seen == size =>
                {
                    if size < plan.sizes.shown {
                        self.command(Command::SetSize { size });
                        self.persist();
                    }
                    let limit = UDEV_TIMEOUT;
                    let helper = self.start_helper(HelperTask::SettleUdev { limit });
                    let until = self.after(limit + Duration::from_secs(1));
                    Step::SettlingUdev { helper, until, size }
                }
                _ if self.is_late(until) => {
                    return Err(self.revert(plan.sizes, size, ResizeError::OtherSize));
                }
                _ => Step::AwaitingSize { until, size },
            },
            Step::SettlingUdev { helper, until, size } => {
                let until = if self.is_forced() { self.now } else { until };
                if !self.is_helper_over(helper, until, event) {
                    return Ok(Some(Step::SettlingUdev { helper, until, size }));
                }
                self.orders.resize = None;
                let before = plan.sizes.shown;
                self.note(Note::Resized { size, before });
                self.reply(plan.order.client, Reply::Resized { size, before });
                return Ok(None);
            }
            other => other,
        }))
    }

    /// What comes first, by what is asked for.
    fn plan(&mut self, plan: Plan, survey: &Survey) -> Next {
        let Plan { order, sizes } = plan;
        if !survey.served {
            return Err(ResizeError::Stalled(None));
        }
        if survey.oldest_ms > MAX_AGE_MS {
            return Err(ResizeError::Stalled(Some(survey.oldest_ms)));
        }
        let least = order.size.unwrap_or(sizes.shown + 1);
        match order.size {
            Some(size) if size <= sizes.shown => self.choose(plan, size),
            _ if self.ownership.has_joined() => match survey.owner_size {
                Some(size) if size >= least => self.choose(plan, order.size.unwrap_or(size)),
                _ => Err(ResizeError::Joined),
            },
            _ => Ok(Some(self.start_probe(least))),
        }
    }

    /// Starts the program again to see how large its storage is. It takes over if that is enough.
    fn start_probe(&mut self, least: u64) -> Step {
        self.note(Note::ProbeStarted);
        self.backends.probe = Some(Probe { least, backend: None, offered: None, is_gone: false });
        self.timers.restart = None;
        self.apply(&ownership::Event::Restart);
        Step::Probing { until: self.after(PROBE_TIMEOUT) }
    }

    /// The program that is started is the probe, if one is wanted.
    pub(super) fn join_probe(&mut self, backend: BackendId) -> bool {
        match &mut self.backends.probe {
            Some(probe) if probe.backend.is_none() => {
                probe.backend = Some(backend);
                true
            }
            _ => false,
        }
    }

    /// Notes what a probe has said; false if that is of no use.
    pub(super) fn probe_offers(&mut self, backend: BackendId, size: u64) -> bool {
        match self.backends.probe.as_mut().filter(|probe| probe.backend == Some(backend)) {
            Some(probe) => {
                probe.offered = Some(size);
                size >= probe.least
            }
            None => true,
        }
    }

    /// It will not come any more.
    pub(super) fn probe_is_gone(&mut self, backend: BackendId) {
        if let Some(probe) =
            self.backends.probe.as_mut().filter(|probe| probe.backend == Some(backend))
        {
            probe.is_gone = true;
        }
    }

    /// What is known of the probe's size, once it serves or has nothing to serve.
    fn probed(&mut self, until: Instant) -> Result<Option<u64>, ResizeError> {
        let probe = self.backends.probe.ok_or(ResizeError::NoBackend)?;
        let serves = probe.backend.is_some()
            && self.ownership.owner() == probe.backend
            && self.ownership.is_ready();
        match probe.offered {
            _ if self.device.failed.is_some() => Err(ResizeError::NoBackend),
            _ if self.is_forced() => Err(ResizeError::BeingDetached),
            Some(offered) if offered < probe.least => Ok(Some(offered)),
            Some(offered) if serves => Ok(Some(offered)),
            _ if probe.is_gone || probe.backend.is_none() => Err(ResizeError::NoBackend),
            _ if self.is_late(until) => Err(ResizeError::ProbeLate),
            _ => Ok(None),
        }
    }

    fn choose(&mut self, Plan { order, sizes }: Plan, size: u64) -> Next {
        Ok(match size.cmp(&sizes.shown) {
            Ordering::Equal => {
                self.orders.resize = None;
                self.reply(order.client, Reply::SizeAlready { size });
                None
            }
            Ordering::Greater => {
                self.command(Command::SetSize { size });
                Some(Step::Persisting { revision: self.persist(), size })
            }
            Ordering::Less if order.force => Some(self.note_before_telling(size)),
            Ordering::Less => Some(Step::CheckingUsers { check: self.check_users(), size }),
        })
    }

    fn note_before_telling(&mut self, size: u64) -> Step {
        self.command(Command::Survey { note: true });
        Step::Noting { size }
    }

    /// The driver keeps its size. What is written down is what it was, and no less: an earlier change may
    /// still be done.
    fn revert(&mut self, sizes: Sizes, size: u64, error: ResizeError) -> ResizeError {
        if size > sizes.shown {
            self.command(Command::SetSize { size: sizes.written });
            self.persist();
        }
        error
    }
}

fn told(report: &Report, size: u64) -> Option<ResizeError> {
    match report {
        // Whoever was killed has told the driver or has not: its size is looked at next.
        Report::Resized(Resized::Done | Resized::Unknown) => None,
        Report::Resized(Resized::Busy) => Some(ResizeError::Claimed),
        Report::Resized(Resized::Needed) => Some(ResizeError::Needed { size }),
        Report::Resized(Resized::Failed(errno)) => Some(ResizeError::Driver(*errno)),
        Report::Status(status) => Some(ResizeError::Driver(Errno::from_raw(*status))),
        Report::Users(_) | Report::Flushed(_) | Report::Program(_) => {
            Some(ResizeError::Driver(Errno::EIO))
        }
    }
}

#[cfg(test)]
mod tests;
