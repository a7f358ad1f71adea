//! From a program to a device that can be used. What fails is undone.

use std::time::{Duration, Instant};

use super::event::{
    AttachError, Command, Condition, Event, HelperId, HelperTask, Note, Reply, Report, Revision,
    SetupRefused,
};
use super::procedure::Procedure;
use super::procedure::attach::Attach;
use super::procedure::take_down::Cause;
use super::state::{Core, Sitter, Wait};

/// How long the driver may take to set a device up.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a passing user, like udev, may keep a free device open.
pub(crate) const USERS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long udev may take to look at a new device. Late is no failure.
const UDEV_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the kernel may take for an attribute of the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a test read may take if a backend has no limit.
const READ_TIMEOUT: Duration = Duration::from_secs(3600);

/// The step that follows; none when it is attached.
type Next = Result<Option<Attach>, AttachError>;

impl Core {
    pub(super) fn begin_attach(&mut self) {
        self.command(Command::OpenJoin);
        match self.ownership.has_program() {
            true => self.start_program(),
            false => self.note(Note::AwaitingJoin),
        }
        let until = self.config.ready_timeout.map(|limit| self.after(limit));
        self.procedure = Procedure::Attach(Attach::AwaitingBackend { until });
    }

    pub(super) fn step_attach(&mut self, attach: Attach, event: &Event) -> Procedure {
        let interrupted = std::mem::take(&mut self.orders.stop) || *event == Event::StarterGone;
        let helper = attach.helper();
        let next = if interrupted {
            Err(AttachError::Interrupted)
        } else if self.backends.hopeless && !attach.awaits_driver() {
            // The first failure before the device exists is the last.
            Err(AttachError::NoBackend)
        } else {
            self.next_attach(attach, event)
        };
        match next {
            Ok(Some(attach)) => Procedure::Attach(attach),
            Ok(None) => Procedure::Idle,
            Err(error) => {
                if let Some(id) = helper.filter(|_| interrupted || self.backends.hopeless) {
                    self.command(Command::LeaveHelper { id });
                }
                // With what is known now, and not of what the end brings.
                self.note(Note::NotAttached(error.clone()));
                self.begin_take_down(Cause::NotAttached(error))
            }
        }
    }

    fn next_attach(&mut self, attach: Attach, event: &Event) -> Next {
        use Attach::{
            AwaitingBackend, AwaitingSize, ComparingLimits, Connecting, FindingUsers, Persisting,
            PersistingAttached, PersistingTimeout, Reading, SettlingUdev, SilencingNew,
            SilencingTimeouts,
        };
        match attach {
            AwaitingBackend { .. } | SilencingTimeouts { .. } | Persisting { .. } => {
                self.attach_backend(attach, event)
            }
            Connecting { .. } | FindingUsers { .. } | AwaitingSize { .. } => {
                self.attach_driver(attach, event)
            }
            SilencingNew { .. } | ComparingLimits { .. } | PersistingTimeout { .. } => {
                self.attach_queue(attach, event)
            }
            Reading { .. } | SettlingUdev { .. } | PersistingAttached { .. } => {
                self.attach_users(attach, event)
            }
        }
    }

    /// A backend is ready before the driver knows of the device.
    fn attach_backend(&mut self, attach: Attach, event: &Event) -> Next {
        Ok(Some(match attach {
            Attach::AwaitingBackend { until } => match event {
                Event::LanesNotMade => return Err(AttachError::NotPrepared),
                _ if self.ownership.is_ready() => self.connect()?,
                _ if until.is_some_and(|until| self.is_late(until)) => {
                    let limit = self.config.ready_timeout.unwrap_or_default();
                    return Err(AttachError::BackendLate(limit));
                }
                _ => Attach::AwaitingBackend { until },
            },
            Attach::SilencingTimeouts { helper, until } => {
                match self.silenced(helper, until, event) {
                    true => self.start_sitter(),
                    false => Attach::SilencingTimeouts { helper, until },
                }
            }
            Attach::Persisting { revision } => match self.is_saved(revision, event) {
                None if *event == Event::SitterNotStarted => {
                    self.device.sitter = Sitter::None;
                    return Err(AttachError::SitterNotStarted);
                }
                None => Attach::Persisting { revision },
                Some(false) => {
                    self.command(Command::DismissSitter);
                    return Err(AttachError::NotSaved);
                }
                Some(true) => {
                    self.command(Command::LetSitterGo);
                    Attach::Connecting { until: self.after(self.connect_timeout()) }
                }
            },
            other => other,
        }))
    }

    /// The driver sets it up.
    fn attach_driver(&mut self, attach: Attach, event: &Event) -> Next {
        Ok(Some(match attach {
            Attach::Connecting { until } => match event {
                Event::SitterNotStarted => return Err(AttachError::SitterNotStarted),
                Event::SitterSaid(Ok(())) => {
                    Attach::AwaitingSize { until: self.after(DRIVER_TIMEOUT) }
                }
                Event::SitterSaid(Err(SetupRefused { busy: true, set_up })) => {
                    // The take-down must not touch what is not ours.
                    self.command(Command::ForgetSitter);
                    self.device.sitter = Sitter::None;
                    if *set_up {
                        return Err(AttachError::Taken(Vec::new()));
                    }
                    let helper = self.start_helper(HelperTask::FindUsers);
                    Attach::FindingUsers { helper, until: self.after(QUEUE_TIMEOUT) }
                }
                Event::SitterSaid(Err(_)) => return Err(AttachError::DriverRefused),
                _ if self.is_late(until) => {
                    return Err(AttachError::DriverLate(self.connect_timeout()));
                }
                _ => Attach::Connecting { until },
            },
            Attach::FindingUsers { helper, mut until } => {
                match self.found_users(helper, &mut until, event) {
                    Some(users) => return Err(AttachError::Taken(users)),
                    None => Attach::FindingUsers { helper, until },
                }
            }
            Attach::AwaitingSize { until } => match event {
                _ if self.device.sitter == Sitter::Gone => return Err(AttachError::GivenUpAtOnce),
                Event::Seen { condition: Condition::Connected, holds: true } => {
                    if self.device.silenced {
                        self.compare_limits()
                    } else {
                        let helper = self.start_helper(HelperTask::SilenceTimeouts);
                        Attach::SilencingNew { helper, until: self.after(QUEUE_TIMEOUT) }
                    }
                }
                _ if self.is_late(until) => return Err(AttachError::WrongSize),
                _ => Attach::AwaitingSize { until },
            },
            other => other,
        }))
    }

    /// The queue is as it shall be before the first read.
    fn attach_queue(&mut self, attach: Attach, event: &Event) -> Next {
        Ok(Some(match attach {
            Attach::SilencingNew { helper, until } => match self.silenced(helper, until, event) {
                true => self.compare_limits(),
                false => Attach::SilencingNew { helper, until },
            },
            Attach::ComparingLimits { helper, until } => {
                match self.is_helper_over(helper, until, event) {
                    true => Attach::PersistingTimeout { revision: self.persist() },
                    false => Attach::ComparingLimits { helper, until },
                }
            }
            Attach::PersistingTimeout { revision } => match self.is_saved(revision, event) {
                None => Attach::PersistingTimeout { revision },
                Some(false) => return Err(AttachError::NotSaved),
                Some(true) => {
                    let helper = self.start_helper(HelperTask::TestRead);
                    Attach::Reading { helper, until: self.after(self.read_timeout()) }
                }
            },
            other => other,
        }))
    }

    /// It can be read, and is told.
    fn attach_users(&mut self, attach: Attach, event: &Event) -> Next {
        Ok(Some(match attach {
            Attach::Reading { helper, until } => match event {
                Event::HelperEnded { id, report } if *id == helper => match report {
                    Report::Status(0) => {
                        let limit = UDEV_TIMEOUT;
                        let helper = self.start_helper(HelperTask::SettleUdev { limit });
                        let until = self.after(limit + Duration::from_secs(1));
                        Attach::SettlingUdev { helper, until }
                    }
                    Report::Status(status) => return Err(AttachError::ReadFailed(*status)),
                    _ => return Err(AttachError::ReadFailed(0)),
                },
                _ if self.is_late(until) => {
                    self.command(Command::LeaveHelper { id: helper });
                    return Err(AttachError::ReadLate(self.read_timeout()));
                }
                _ => Attach::Reading { helper, until },
            },
            Attach::SettlingUdev { helper, until } => {
                if !self.is_helper_over(helper, until, event) {
                    return Ok(Some(Attach::SettlingUdev { helper, until }));
                }
                let settled = matches!(event, Event::HelperEnded { report: Report::Status(0), .. });
                if !settled {
                    self.note(Note::UdevLate);
                }
                self.device.attached = true;
                self.ownership.set_attached(0);
                Attach::PersistingAttached { revision: self.persist() }
            }
            Attach::PersistingAttached { revision } => match self.is_saved(revision, event) {
                None => Attach::PersistingAttached { revision },
                Some(false) => return Err(AttachError::NotSaved),
                Some(true) => {
                    self.note(Note::Attached);
                    if let Some(backend) = self.ownership.owner() {
                        self.reply_waiting(&[Wait::Backend], &Reply::Served { backend });
                    }
                    return Ok(None);
                }
            },
            other => other,
        }))
    }

    fn connect_timeout(&self) -> Duration {
        DRIVER_TIMEOUT + self.users_timeout()
    }

    fn read_timeout(&self) -> Duration {
        self.config.ready_timeout.unwrap_or(READ_TIMEOUT)
    }

    fn connect(&mut self) -> Result<Attach, AttachError> {
        if !self.config.exists {
            return Ok(self.start_sitter());
        }
        let helper = self.start_helper(HelperTask::SilenceTimeouts);
        Ok(Attach::SilencingTimeouts { helper, until: self.after(QUEUE_TIMEOUT) })
    }

    /// Whether that is over, well or not.
    fn silenced(&mut self, helper: HelperId, until: Instant, event: &Event) -> bool {
        if let Event::HelperEnded { id, report: Report::Status(0) } = event
            && *id == helper
        {
            self.device.silenced = true;
        }
        self.is_helper_over(helper, until, event)
    }

    fn start_sitter(&mut self) -> Attach {
        self.device.sitter = Sitter::Sits;
        self.command(Command::StartSitter);
        Attach::Persisting { revision: self.persist() }
    }

    fn compare_limits(&mut self) -> Attach {
        let helper = self.start_helper(HelperTask::CompareLimits);
        Attach::ComparingLimits { helper, until: self.after(QUEUE_TIMEOUT) }
    }

    /// Whether the state of this revision was written, once that is known.
    pub(super) fn is_saved(&self, revision: Revision, event: &Event) -> Option<bool> {
        match *event {
            Event::StatePersisted { revision: saved } if saved >= revision => Some(true),
            Event::StateNotPersisted { revision: failed } if failed >= revision => Some(false),
            _ => None,
        }
    }
}
