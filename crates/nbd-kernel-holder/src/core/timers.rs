//! What happens because time has passed, beside the steps of a procedure.

use std::time::{Duration, Instant};

use super::event::{Command, Note};
use super::ownership;
use super::state::Core;

/// From this pause on an operator who waits for a backend is told that there is none yet.
pub(super) const TELLING_PAUSE: Duration = Duration::from_secs(1);
/// The pause after an EIO backend that was lost.
const EIO_BACKEND_PAUSE: Duration = Duration::from_secs(1);

impl Core {
    pub(super) fn timer_deadline(&self) -> Option<Instant> {
        [self.timers.restart, self.timers.spare, self.loss_deadline()].into_iter().flatten().min()
    }

    pub(super) fn check_timers(&mut self) {
        self.check_durability();
        self.check_fail_deadline();
        let now = self.now;
        if self.timers.restart.take_if(|due| *due <= now).is_some() {
            self.apply(&ownership::Event::Due);
        }
        self.check_spare();
        if self.loss_deadline().is_some_and(|due| due <= now) {
            // Not again for each time that what answers with EIO could not be started.
            let since = self.timers.unserved_since;
            let is_first =
                self.timers.eio_pause.is_none_or(|pause| since.is_some_and(|it| pause < it));
            if is_first {
                self.note(Note::Unserved);
            }
            self.apply(&ownership::Event::Unserved);
        }
    }

    /// Starts a spare when one is wanted, a little later than that.
    fn check_spare(&mut self) {
        // One that is started while the size changes would have the old one.
        if !self.ownership.wants_spare() || self.is_resizing() {
            self.timers.spare = None;
            return;
        }
        let first = self.after(self.ownership.spare_pause());
        let due = *self.timers.spare.get_or_insert(first);
        if due <= self.now {
            self.timers.spare = None;
            let backend = self.new_backend();
            self.ownership.started_spare(backend);
            self.command(Command::StartSpare { backend });
        }
    }

    /// When requests have waited for a backend for as long as the operator lets them.
    fn loss_deadline(&self) -> Option<Instant> {
        let since = self
            .timers
            .unserved_since
            .filter(|_| self.device.attached && self.device.failed.is_none())?;
        let due = since + self.config.loss_limit?;
        let due = self.timers.eio_pause.map_or(due, |pause| due.max(pause));
        let ends = self.ownership.is_abandoned() || self.ownership.is_shutting_down();
        (self.ownership.is_unserved() && !ends).then_some(due)
    }

    /// An EIO backend has failed, and is not started again at once.
    pub(super) fn pause_eio_backend(&mut self) {
        self.timers.eio_pause = Some(self.after(EIO_BACKEND_PAUSE));
    }

    pub(super) fn note_unserved(&mut self) {
        if self.device.attached {
            self.timers.unserved_since.get_or_insert(self.now);
        }
    }
}
