//! What is done about backends: the actions of [`ownership`] as commands, and what backends say.

use std::time::Duration;

use super::event::{BackendId, Command, Note, Refusal, Reply};
use super::ownership::{self, Action};
use super::state::{Core, Failed, Replacement, Wait};
use super::timers;

impl Core {
    pub(super) fn apply(&mut self, event: &ownership::Event) {
        let actions = self.ownership.apply(event);
        self.perform(&actions);
    }

    pub(super) fn perform(&mut self, actions: &[Action]) {
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Start => self.start_program(),
            Action::StartAfter(pause) => self.start_after(pause),
            Action::Grant(backend) => self.grant(backend),
            Action::Refuse(backend, why) => self.command(Command::Refuse { backend, why }),
            Action::KillOwner => self.command(Command::KillOwner),
            Action::Dismiss(backend) => {
                self.probe_is_gone(backend);
                self.command(Command::Dismiss { backend });
            }
            Action::StartEioBackend => {
                let backend = self.new_backend();
                self.ownership.started_eio_backend(backend);
                self.command(Command::StartEioBackend { backend });
            }
            Action::FailAborted => self.fail_aborted(),
            Action::GiveUp => self.give_up(),
            Action::ReplacementFailed => {
                self.backends.replacement = None;
                self.reply_waiting(&[Wait::Start], &Reply::PresentBackendGoesOn);
            }
        }
    }

    pub(super) fn start_program(&mut self) {
        let backend = self.new_backend();
        self.ownership.started(backend);
        let program = self.backends.replacement.as_mut().map(|replacement| {
            replacement.backend = Some(backend);
            replacement.program.clone()
        });
        let probe = self.join_probe(backend);
        let examine = self.ownership.has_backend();
        self.command(Command::StartProgram { backend, program, probe, examine });
    }

    fn start_after(&mut self, pause: Duration) {
        self.timers.restart = Some(self.after(pause));
        if self.backends.replacement.take().is_some() {
            self.note(Note::FormerProgramAgain);
            self.reply_waiting(&[Wait::Start], &Reply::FormerProgramAgain);
        }
        self.note(Note::Retrying { pause });
        if pause >= timers::TELLING_PAUSE {
            self.reply_waiting(&[Wait::Start], &Reply::Retrying { pause });
        }
    }

    /// The new program is gone without having served: another backend was faster, or it has died before
    /// the owner.
    pub(super) fn check_replacement(&mut self) {
        let is_lost =
            |it: &mut Replacement| it.backend.is_some_and(|backend| !self.ownership.has(backend));
        if self.backends.replacement.take_if(is_lost).is_some() {
            self.reply_waiting(&[Wait::Start], &Reply::ReplacementLost);
        }
    }

    /// A client waits for a backend that was ordered, and none will come by itself.
    pub(super) fn check_waiting_for_start(&mut self) {
        use ownership::Phase::{Down, Paused, Waiting};
        if self.device.attached
            && self.device.failed.is_none()
            && matches!(self.ownership.phase(), Waiting | Down | Paused)
        {
            self.reply_waiting(&[Wait::Start], &Reply::NoBackendComes);
        }
    }

    fn give_up(&mut self) {
        self.backends.replacement = None;
        if !self.device.attached {
            self.backends.hopeless = true;
            return;
        }
        self.note(Note::GaveUp);
        self.reply_waiting(&[Wait::Start, Wait::Backend], &Reply::GaveUp);
    }

    pub(super) fn hello(&mut self, backend: BackendId, takeover: bool, size: u64) {
        if !self.probe_offers(backend, size) {
            let why = Refusal::TooSmall { size };
            return self.command(Command::Refuse { backend, why });
        }
        self.apply(&ownership::Event::Hello { backend, takeover });
        if self.ownership.spare() == Some(backend) {
            self.note(Note::SpareReady);
        }
    }

    pub(super) fn start_failed(&mut self, backend: BackendId, shortage: bool) {
        use ownership::NotStarted;
        self.probe_is_gone(backend);
        match self.ownership.not_started(backend) {
            NotStarted::Program => self.apply(&ownership::Event::StartFailed { shortage }),
            NotStarted::EioBackend => {
                self.pause_eio_backend();
                self.apply(&ownership::Event::EioBackendFailed);
            }
            NotStarted::Spare | NotStarted::Unknown => {}
        }
    }

    pub(super) fn ready(&mut self, backend: BackendId) {
        self.apply(&ownership::Event::Ready { backend });
        if self.ownership.is_eio_backend(backend) {
            self.timers.eio_since = Some(self.now);
            self.note(Note::EioBackendReady);
            return self.fail_answers();
        }
        if self.ownership.owner() != Some(backend) {
            return;
        }
        self.timers.unserved_since = None;
        if let Some(it) = self.backends.replacement.take_if(|it| it.backend == Some(backend)) {
            self.ownership.set_has_program();
            self.command(Command::SetProgram { program: it.program });
            self.persist();
        }
        self.note(Note::Recovered { backend });
        self.reply_waiting(&[Wait::Start, Wait::Backend], &Reply::Served { backend });
    }

    /// Ends the lanes of a device that no backend can serve: what is in flight gets EIO.
    pub(super) fn fail_device(&mut self) {
        if !self.device.attached {
            return;
        }
        self.device.failed = Some(Failed::Damaged);
        self.note(Note::DeviceFailed);
        self.command(Command::EndLanes);
        self.apply(&ownership::Event::ShutDown);
        let all = [Wait::Start, Wait::Backend, Wait::Pause, Wait::Fail];
        self.reply_waiting(&all, &Reply::DeviceFailed);
    }
}
