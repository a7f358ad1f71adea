//! What the holder writes down for its successor, and what has to wait until that is written.
//!
//! A backend is granted the lanes, and a sitter lets the driver have them, only when the state that names
//! them is on its file: a holder that adopts the device must know every process that may have the
//! lanes, or it would give them to a second one. A state that cannot be written is tried again.

use std::io;
use std::time::{Duration, Instant};

use nbd_control::process::ProcessId;
use nbd_control::registry::State;

use crate::holder::Holder;
use crate::peers::Peer;
use crate::supervisor::PeerId;

/// The first pause before a state is written again, which doubles …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A state that is not on its file.
#[derive(Debug)]
pub(crate) struct Unsaved {
    pub(crate) error: io::Error,
    due: Instant,
    pause: Duration,
}

impl Holder {
    /// Writes down what another holder needs in order to adopt the device; false if it could not, and is
    /// tried again.
    pub(crate) fn save_state(&mut self) -> bool {
        let written = self.state().map_or(Ok(()), |state| self.registry.write_state(&state));
        let Err(error) = written else {
            if self.unsaved.take().is_some() {
                self.log("its state can be written again, and is");
            }
            return true;
        };
        let pause = match &self.unsaved {
            None => {
                tracing::error!(
                    device = %self.device.name(),
                    event = "state-not-saved",
                    "cannot write its state to {}: {error}; no backend is granted the lanes \
                     before it can: make room there",
                    self.registry.folder(self.device.index).display()
                );
                FIRST_PAUSE
            }
            Some(before) => (before.pause * 2).min(LONGEST_PAUSE),
        };
        self.unsaved = Some(Unsaved { error, due: Instant::now() + pause, pause });
        false
    }

    /// Why the state is not on its file.
    pub(crate) fn state_error(&self) -> String {
        let error = self.unsaved.as_ref().map(|unsaved| unsaved.error.to_string());
        let folder = self.registry.folder(self.device.index);
        format!(
            "cannot write its state to {}: {}",
            folder.display(),
            error.unwrap_or_else(|| "it was written".into())
        )
    }

    /// When the state is tried again.
    pub(crate) fn save_due(&self) -> Option<Instant> {
        self.unsaved.as_ref().map(|unsaved| unsaved.due)
    }

    /// Tries the state again, and once it is written grants the lanes to the backend that waited for it.
    pub(crate) fn check_state(&mut self) {
        if self.save_due().is_some_and(|due| Instant::now() >= due) {
            self.save_state();
        }
        if self.unsaved.is_none()
            && let Some(id) = self.ungranted.take()
            && self.supervisor.owner() == Some(id)
        {
            self.finish_grant(id);
        }
    }

    /// The backend whose grant waits for the state.
    pub(crate) fn hold_grant(&mut self, id: PeerId) {
        let pid = self.peers.get(&id).and_then(Peer::pid).unwrap_or(0);
        self.warn(&format!("backend {pid} gets the lanes when the state that names it is written"));
        self.ungranted = Some(id);
    }

    /// Nothing as long as there is nothing to adopt.
    fn state(&self) -> Option<State> {
        let (sitter, export) = (self.sitter.as_ref()?, self.export?);
        let owner = self.supervisor.owner().and_then(|peer| self.peers.get(&peer));
        Some(State {
            version: State::VERSION,
            index: self.device.index,
            holder: self.me,
            sitter: sitter.id,
            backend: owner.and_then(Peer::pid).and_then(ProcessId::of),
            program: self.settings.program.clone(),
            description: self.description.clone(),
            export,
            keepsakes: self.keepsakes.iter().map(|(name, _)| name.clone()).collect(),
            options: self.settings.options.clone(),
            restart_limit_given: self.settings.restart_limit.is_some(),
            io_timeout: self.io_timeout,
            restarts: self.supervisor.restarts(),
            paused: self.supervisor.is_paused(),
            recording: self.recording.as_ref().map(|recording| recording.path.clone()),
            stand_in: owner.is_some_and(|peer| peer.stand_in),
            log_level: self.settings.log_level.clone(),
            history: self.history.clone(),
        })
    }
}
