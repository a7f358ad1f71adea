//! Whether anything uses the device: what a detach or a smaller size would pull away from it.

use std::time::Duration;

use super::event::{Command, Event, HelperTask, Report};
use super::procedure::users::{Checked, Step, UsersCheck};
use super::state::Core;

/// How long a passing user, like udev, may keep a device open.
const PASSING_TIMEOUT: Duration = Duration::from_secs(1);
const PASSING_INTERVAL: Duration = Duration::from_millis(50);
/// How long looking at all processes may take.
pub(crate) const SCAN_TIMEOUT: Duration = Duration::from_secs(10);

impl Core {
    pub(super) fn check_users(&mut self) -> UsersCheck {
        let give_up = self.after(PASSING_TIMEOUT);
        UsersCheck { give_up, step: self.scan_users() }
    }

    fn scan_users(&mut self) -> Step {
        let helper = self.start_helper(HelperTask::FindUsers);
        Step::Scanning { helper, until: self.after(SCAN_TIMEOUT) }
    }

    pub(super) fn step_users(&mut self, check: UsersCheck, event: &Event) -> Checked {
        let UsersCheck { give_up, step } = check;
        match (step, event) {
            (
                Step::Scanning { helper, .. },
                Event::HelperEnded { id, report: Report::Users(found) },
            ) if *id == helper => match found {
                Err(why) => Checked::Unknown(why.clone()),
                Ok(users) if users.is_empty() => Checked::Unused,
                Ok(users) if self.now >= give_up || users.iter().any(|user| !user.may_pass) => {
                    Checked::Used(users.clone())
                }
                Ok(_) => {
                    let until = self.after(PASSING_INTERVAL);
                    Checked::NotYet(UsersCheck { give_up, step: Step::Pausing { until } })
                }
            },
            // The answer of a helper that is late is what it has found so far.
            (Step::Scanning { helper, until }, _) if self.is_late(until) => {
                self.command(Command::LeaveHelper { id: helper });
                let until = until + SCAN_TIMEOUT;
                Checked::NotYet(UsersCheck { give_up, step: Step::Scanning { helper, until } })
            }
            (Step::Pausing { until }, _) if self.is_late(until) => {
                Checked::NotYet(UsersCheck { give_up, step: self.scan_users() })
            }
            (step, _) => Checked::NotYet(UsersCheck { give_up, step }),
        }
    }
}
