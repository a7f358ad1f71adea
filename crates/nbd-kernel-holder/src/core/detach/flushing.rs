//! What is dirty is written back, by a helper process that then has the driver disconnect. Meanwhile the core looks
//! from time to time whether a backend answers.

use std::time::Duration;

use nix::errno::Errno;

use crate::core::event::{Command, DetachError, Event, Flushed, HelperTask, Note, Report, Survey};
use crate::core::procedure::detach::{Flushing, Step};
use crate::core::state::Core;

/// How long writing back may take, unless the operator forces.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// The same while no backend answers.
const FLUSH_UNSERVED_TIMEOUT: Duration = Duration::from_secs(3);
/// How often to look whether a backend answers.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// The driver was told to disconnect.
pub(super) struct Disconnected;

impl Core {
    pub(super) fn flush(&mut self) -> Step {
        self.begin_leaving();
        let helper = self.start_helper(HelperTask::FlushAndDisconnect);
        let served = self.ownership.is_ready();
        let limit = if served { FLUSH_TIMEOUT } else { FLUSH_UNSERVED_TIMEOUT };
        let look = Some(self.after(FLUSH_INTERVAL));
        Step::Flushing(Flushing { helper, until: self.after(limit), look, unserved: None })
    }

    pub(super) fn step_flush(
        &mut self,
        mut it: Flushing,
        event: &Event,
    ) -> Result<Step, Disconnected> {
        match event {
            Event::HelperEnded { id, report } if *id == it.helper => {
                return self.flushed(report);
            }
            Event::Surveyed(Survey { served, waiting, .. }) => {
                if *waiting {
                    self.miss_departed();
                }
                let since = it.unserved.unwrap_or(self.now);
                it.unserved = (!served).then_some(since);
                it.look = Some(self.after(FLUSH_INTERVAL));
            }
            _ => {}
        }
        let is_unserved =
            it.unserved.is_some_and(|since| self.now >= since + FLUSH_UNSERVED_TIMEOUT);
        if is_unserved || self.now >= it.until {
            self.command(Command::LeaveHelper { id: it.helper });
            return Ok(self.stay(DetachError::NotAnswered));
        }
        if it.look.take_if(|look| *look <= self.now).is_some() {
            self.command(Command::Survey { note: false });
        }
        Ok(Step::Flushing(it))
    }

    fn flushed(&mut self, report: &Report) -> Result<Step, Disconnected> {
        match report {
            Report::Flushed(Flushed::Disconnected) => {
                self.device.disconnected = true;
                Err(Disconnected)
            }
            Report::Flushed(Flushed::NotDisconnected) => {
                self.note(Note::NotDisconnected);
                Err(Disconnected)
            }
            Report::Flushed(Flushed::Busy) => Ok(Step::CheckingAgain(self.check_users())),
            Report::Flushed(Flushed::Failed(errno)) => {
                Ok(self.stay(DetachError::NotWritten(*errno)))
            }
            Report::Status(errno) => {
                Ok(self.stay(DetachError::NotWritten(Errno::from_raw(*errno))))
            }
            Report::Users(_) | Report::Resized(_) | Report::Program(_) => {
                Ok(self.stay(DetachError::NotAnswered))
            }
        }
    }
}
