//! What the holder writes down for its successor.

use std::io;

use nbd_control::attach_options::AttachOptions;
use nbd_control::process::ProcessId;
use nbd_control::registry::State;

use crate::core::{Event, Revision};
use crate::holder::Holder;

impl Holder {
    /// Writes down what another holder needs in order to adopt the device, and tells the core.
    pub(crate) fn persist_state(&mut self, revision: Revision) {
        let state = self.state();
        let written = state.and_then(|state| {
            state.map_or(Ok(()), |state| self.place.registry.write_state(&state))
        });
        match written {
            Ok(()) => {
                if self.told.failures.save.take().is_some() {
                    self.log("its state could be written again");
                }
                self.feed(Event::StatePersisted { revision });
            }
            Err(error) => {
                if self.told.failures.save.is_none() {
                    tracing::error!(
                        device = %self.device.name(),
                        event = "state-not-saved",
                        "cannot write its state to {}: {error}; until it can, no backend gets the lanes: make room there",
                        self.place.registry.folder(self.device.index).display()
                    );
                }
                self.told.failures.save = Some(error);
                self.feed(Event::StateNotPersisted { revision });
            }
        }
    }

    /// Why the state is not on its file.
    pub(crate) fn state_error(&self) -> String {
        let error = self.told.failures.save.as_ref().map(ToString::to_string);
        let folder = self.place.registry.folder(self.device.index);
        format!(
            "cannot write its state to {}: {}",
            folder.display(),
            error.unwrap_or_else(|| "it was written".into())
        )
    }

    /// Nothing as long as there is nothing to adopt.
    ///
    /// # Errors
    ///
    /// The owner lives, most probably, and cannot be named so that another holder would know it.
    fn state(&self) -> io::Result<Option<State>> {
        let (Some(sitter), Some(export)) = (&self.processes.sitter, self.data.export) else {
            return Ok(None);
        };
        let backend = self.owner_pid().map(ProcessId::read).transpose()?.flatten();
        let owner = self.owner();
        Ok(Some(State {
            version: State::VERSION,
            index: self.device.index,
            holder: self.place.me,
            sitter: sitter.id,
            backend,
            program: self.settings.program.clone(),
            description: self.data.description.clone(),
            export,
            keepsakes: self.data.fd_store.iter().map(|(name, _)| name.clone()).collect(),
            // Of several lanes that were asked for there may be one.
            options: AttachOptions {
                lanes: self.data.layout.lanes,
                ..self.settings.options.clone()
            },
            restart_limit_given: self.settings.restart_limit.is_some(),
            io_timeout: self.data.io_timeout,
            restarts: self.core.ownership.restarts(),
            paused: self.core.ownership.is_paused(),
            recording: self.data.recording.as_ref().map(|recording| recording.path.clone()),
            stand_in: owner.is_some_and(|backend| backend.answers_eio),
            log_level: self.settings.log_level.clone(),
            history: self.told.history.clone(),
        }))
    }
}
