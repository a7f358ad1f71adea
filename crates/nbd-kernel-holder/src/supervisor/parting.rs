//! The end of a device: nobody is granted the lanes any more, and nobody is started.
//!
//! A backend is told by the driver (`NBD_CMD_DISC`) or by the end of its lanes that it is no longer
//! needed, and ends. In a detach in order the driver may say so before the holder knows that the
//! detach has come through, so an owner that ends then is *told to*, and has no successor unless the
//! detach comes to nothing.

use super::{Action, Event, Owner, PeerId, Refusal, Supervisor};

/// Whether the device is there to stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Parting {
    /// It is.
    #[default]
    No,
    /// Its owner has ended as it was told to.
    OwnerLeft { owner: Owner, clean: bool, progressed: bool },
    /// It is being taken down.
    Final,
}

impl Supervisor {
    /// The owner has ended because the driver told it to.
    pub(super) fn owner_left(&mut self, clean: bool, progressed: bool) -> Vec<Action> {
        if let Some(owner) = self.owner.take() {
            self.parting = Parting::OwnerLeft { owner, clean, progressed };
        }
        Vec::new()
    }

    /// The detach has come to nothing: an owner that left had no reason to.
    pub(super) fn stay(&mut self) -> Vec<Action> {
        match std::mem::take(&mut self.parting) {
            Parting::OwnerLeft { owner, clean, progressed } if self.owner.is_none() => {
                self.after_owner(owner, clean, progressed)
            }
            _ => Vec::new(),
        }
    }

    /// Sends everybody away but the owner, who sees the end of its lanes.
    pub(super) fn part(&mut self) -> Vec<Action> {
        self.parting = Parting::Final;
        self.due = false;
        let starting = self.starting.take().map(|(peer, _)| peer);
        let candidate = self.candidate.take();
        let ours = candidate.and_then(|(peer, program)| program.then_some(peer));
        let idle = [self.spare.take(), starting, self.stand_in.take(), ours];
        let dismissed = idle.into_iter().flatten().map(Action::Dismiss);
        let joined = candidate.filter(|(_, program)| !program).map(|(peer, _)| refuse(peer));
        dismissed.chain(joined).collect()
    }

    pub(crate) fn is_parting(&self) -> bool {
        self.parting == Parting::Final
    }

    /// What follows from an event while the device is being taken down: nothing, but that whoever
    /// comes is too late.
    pub(super) fn apply_parting(&mut self, event: &Event) -> Vec<Action> {
        match *event {
            Event::Hello { peer, .. } => vec![refuse(peer)],
            Event::OwnerDead { .. } | Event::OwnerLeft { .. } => {
                self.owner = None;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

fn refuse(peer: PeerId) -> Action {
    Action::Refuse(peer, Refusal::Parting)
}

#[cfg(test)]
mod tests;
