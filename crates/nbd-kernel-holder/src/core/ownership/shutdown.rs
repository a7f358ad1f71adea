//! The end of a device: no backend is granted the lanes or started any more.

use super::{Action, BackendId, Event, Ownership, Refusal};

impl Ownership {
    /// Sends all away but the owner, which sees the end of its lanes.
    pub(super) fn shut_down(&mut self) -> Vec<Action> {
        self.hold.shutting_down = true;
        let eio_backend = self.eio_backend.take().map(Action::Dismiss);
        eio_backend.into_iter().chain(self.send_away()).collect()
    }

    /// Sends away every backend that waits for the lanes or is on its way.
    pub(super) fn send_away(&mut self) -> Vec<Action> {
        self.due = false;
        let starting = self.starting.take().map(|(backend, _)| backend);
        let candidate = self.candidate.take();
        let ours = candidate.and_then(|(backend, program)| program.then_some(backend));
        let idle = [self.spare.take(), starting, ours];
        let dismissed = idle.into_iter().flatten().map(Action::Dismiss);
        let joined = candidate.filter(|(_, program)| !program).map(|(backend, _)| refuse(backend));
        dismissed.chain(joined).collect()
    }

    /// Whether the device is being taken down.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.hold.shutting_down
    }

    /// What follows from an event then: nothing, but that a backend that comes is too late.
    pub(super) fn apply_shutdown(&mut self, event: &Event) -> Vec<Action> {
        match *event {
            Event::Hello { backend, .. } => vec![refuse(backend)],
            Event::OwnerDead { .. } => {
                self.owner = None;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

pub(super) fn refuse(backend: BackendId) -> Action {
    Action::Refuse(backend, Refusal::ShuttingDown)
}

#[cfg(test)]
mod tests;
