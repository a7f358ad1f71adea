//! When the holder's state is written down, and what has to wait until it is.
//!
//! A backend is granted the lanes only when the state that names it is on its file: a holder that adopts
//! the device must know every process that may have the lanes, or it would give them to a second one. A
//! state that cannot be written is tried again.

use std::time::Duration;

use super::event::{BackendId, Command, Note, Revision};
use super::state::{Core, PendingGrant, Unsaved};

/// The first pause before a state is written again, which doubles …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … up to this.
const MAX_PAUSE: Duration = Duration::from_secs(5);

impl Core {
    /// Has the state written, and says which revision that is.
    pub(super) fn persist(&mut self) -> Revision {
        self.durability.revision.0 += 1;
        let revision = self.durability.revision;
        self.command(Command::PersistState { revision });
        revision
    }

    /// The lanes for a backend: the last owner was seen dead.
    pub(super) fn grant(&mut self, backend: BackendId) {
        self.command(Command::PrepareGrant { backend });
        let revision = self.persist();
        self.durability.grant = Some(PendingGrant { backend, revision, is_told: false });
    }

    pub(super) fn state_persisted(&mut self, revision: Revision) {
        if revision == self.durability.revision {
            self.durability.unsaved = None;
        }
        let written = self.durability.grant.take_if(|grant| grant.revision <= revision);
        if let Some(PendingGrant { backend, .. }) = written
            && self.ownership.owner() == Some(backend)
        {
            self.command(Command::Grant { backend });
        }
    }

    pub(super) fn state_not_persisted(&mut self, revision: Revision) {
        let pause = match &self.durability.unsaved {
            None => FIRST_PAUSE,
            Some(before) => (before.pause * 2).min(MAX_PAUSE),
        };
        self.durability.unsaved = Some(Unsaved { due: self.after(pause), pause });
        let grant = self.durability.grant.as_mut();
        if let Some(grant) = grant.filter(|grant| grant.revision <= revision && !grant.is_told) {
            grant.is_told = true;
            let backend = grant.backend;
            self.note(Note::GrantWaits { backend });
        }
    }

    /// Tries a state again that could not be written.
    pub(super) fn check_durability(&mut self) {
        let now = self.now;
        if let Some(unsaved) = self.durability.unsaved.as_mut().filter(|it| it.due <= now) {
            // Until it is known what became of it.
            unsaved.due = now + MAX_PAUSE;
            self.persist();
        }
    }
}
