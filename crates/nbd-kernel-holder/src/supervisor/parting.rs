//! The end of a device: nobody is granted the lanes any more, and nobody is started.

use super::{Action, Event, PeerId, Refusal, Supervisor};

impl Supervisor {
    /// Sends everybody away but the owner, who sees the end of its lanes.
    pub(super) fn part(&mut self) -> Vec<Action> {
        self.parting = true;
        let stand_in = self.stand_in.take().map(Action::Dismiss);
        stand_in.into_iter().chain(self.send_away()).collect()
    }

    /// Sends away every backend that waits for the lanes or is on its way.
    pub(super) fn send_away(&mut self) -> Vec<Action> {
        self.due = false;
        let starting = self.starting.take().map(|(peer, _)| peer);
        let candidate = self.candidate.take();
        let ours = candidate.and_then(|(peer, program)| program.then_some(peer));
        let idle = [self.spare.take(), starting, ours];
        let dismissed = idle.into_iter().flatten().map(Action::Dismiss);
        let joined = candidate.filter(|(_, program)| !program).map(|(peer, _)| refuse(peer));
        dismissed.chain(joined).collect()
    }

    /// Whether the device is being taken down.
    pub(crate) fn is_parting(&self) -> bool {
        self.parting
    }

    /// What follows from an event then: nothing, but that whoever comes is too late.
    pub(super) fn apply_parting(&mut self, event: &Event) -> Vec<Action> {
        match *event {
            Event::Hello { peer, .. } => vec![refuse(peer)],
            Event::OwnerDead { .. } => {
                self.owner = None;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

pub(super) fn refuse(peer: PeerId) -> Action {
    Action::Refuse(peer, Refusal::Parting)
}

#[cfg(test)]
mod tests;
