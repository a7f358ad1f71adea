//! The holder becomes another build of itself, and the device does not notice.

use std::time::{Duration, Instant};

use super::event::{Command, Event, HelperTask, Note, Reply, Report, UpgradeError};
use super::procedure::Procedure;
use super::procedure::upgrade::{Step, Upgrade, UpgradeOrder};
use super::state::{Core, Sitter};

/// How long the new program may take to tell what it can do.
pub(crate) const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a backend that is just being started or replaced is waited for.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

impl Core {
    pub(super) fn begin_upgrade(&mut self, order: UpgradeOrder) -> Procedure {
        if self.orders.detach.is_some() {
            return self.not_upgraded(&order, UpgradeError::Unsettled);
        }
        let program = order.program.clone();
        let helper = self.start_helper(HelperTask::AskProgram { program });
        let step = Step::Checking { helper, until: self.after(CHECK_TIMEOUT) };
        Procedure::Upgrade(Upgrade { order, step })
    }

    pub(super) fn step_upgrade(&mut self, upgrade: Upgrade, event: &Event) -> Procedure {
        let Upgrade { order, step } = upgrade;
        match self.next_upgrade(&order, step, event) {
            Ok(step) => Procedure::Upgrade(Upgrade { order, step }),
            Err(error) => self.not_upgraded(&order, error),
        }
    }

    fn not_upgraded(&mut self, order: &UpgradeOrder, error: UpgradeError) -> Procedure {
        self.note(Note::NotUpgraded(error.clone()));
        self.reply(order.client, Reply::NotUpgraded(error));
        Procedure::Idle
    }

    fn next_upgrade(
        &mut self,
        order: &UpgradeOrder,
        step: Step,
        event: &Event,
    ) -> Result<Step, UpgradeError> {
        Ok(match step {
            Step::Checking { helper, .. } if self.orders.detach.is_some() || self.orders.stop => {
                self.command(Command::LeaveHelper { id: helper });
                return Err(self.check_upgradable().err().unwrap_or(UpgradeError::Unsettled));
            }
            Step::Checking { helper, until } => match event {
                Event::HelperEnded { id, report } if *id == helper => {
                    match report {
                        Report::Program(Ok(())) => {}
                        Report::Program(Err(text)) => {
                            return Err(UpgradeError::CannotTakeOver(text.clone()));
                        }
                        Report::Status(errno) => {
                            let (program, errno) = (order.program.clone(), *errno);
                            return Err(UpgradeError::CannotRun { program, errno });
                        }
                        Report::Users(_) | Report::Flushed(_) | Report::Resized(_) => {
                            return Err(UpgradeError::CannotTakeOver(String::new()));
                        }
                    }
                    self.settle(self.after(SETTLE_TIMEOUT))?
                }
                _ if self.is_late(until) => {
                    self.command(Command::LeaveHelper { id: helper });
                    return Err(UpgradeError::CheckLate { program: order.program.clone() });
                }
                _ => Step::Checking { helper, until },
            },
            Step::Settling { until } => self.settle(until)?,
            Step::Persisting { revision } => match self.is_saved(revision, event) {
                None => Step::Persisting { revision },
                Some(false) => return Err(UpgradeError::NotSaved),
                Some(true) => {
                    self.check_upgradable()?;
                    let UpgradeOrder { client, program } = order.clone();
                    self.command(Command::BecomeProgram { client, program });
                    Step::Becoming
                }
            },
            Step::Becoming if *event == Event::NotBecome => {
                self.check_upgradable()?;
                return Err(UpgradeError::NotBecome);
            }
            Step::Becoming => Step::Becoming,
        })
    }

    fn check_upgradable(&self) -> Result<(), UpgradeError> {
        if let Some(why) = self.why_not_now() {
            return Err(UpgradeError::Refused(why));
        }
        if self.orders.detach.is_some() {
            return Err(UpgradeError::Unsettled);
        }
        if self.orders.stop {
            return Err(UpgradeError::Stopping);
        }
        match self.device.sitter {
            Sitter::Sits => Ok(()),
            Sitter::None | Sitter::Gone => Err(UpgradeError::NoSitter),
        }
    }

    fn settle(&mut self, until: Instant) -> Result<Step, UpgradeError> {
        self.check_upgradable()?;
        if self.ownership.is_settled() && !self.is_grant_waiting() {
            return Ok(Step::Persisting { revision: self.persist() });
        }
        match self.is_late(until) {
            true => Err(UpgradeError::Unsettled),
            false => Ok(Step::Settling { until }),
        }
    }
}
