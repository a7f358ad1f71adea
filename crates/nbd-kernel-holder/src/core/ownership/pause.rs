//! What the operator orders, and the EIO backend: the lanes are touched in no other way than any
//! backend does, by being granted them after their owner is dead.
//!
//! While the device is *held*, paused or failing, no backend is granted the lanes. Those that
//! introduce themselves wait, and get them afterwards.

use super::{Action, BackendId, Kind, Owner, Ownership};

impl Ownership {
    /// The EIO backend was started as this backend, on [`Action::StartEioBackend`].
    pub(crate) fn started_eio_backend(&mut self, backend: BackendId) {
        self.eio_backend = Some(backend);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.hold.paused
    }

    /// Whether requests wait, and for nothing but a backend.
    pub(crate) fn is_unserved(&self) -> bool {
        self.owner.is_none() && self.eio_backend.is_none() && !self.is_held()
    }

    /// Whether a backend that executes requests has the lanes.
    pub(crate) fn has_backend(&self) -> bool {
        self.owner.is_some_and(|owner| owner.kind != Kind::EioBackend)
    }

    /// Whether the backend, if there is one, came from outside.
    pub(crate) fn has_joined(&self) -> bool {
        self.owner.is_some_and(|owner| owner.kind == Kind::Joined)
    }

    /// The paused holder of this device was replaced.
    pub(crate) fn set_paused(&mut self) {
        self.hold.paused = true;
    }

    pub(super) fn is_held(&self) -> bool {
        self.hold.paused || self.hold.failing
    }

    /// Has the owner killed, if there is one.
    pub(super) fn kill_owner(&mut self) -> Option<Action> {
        let owner = self.owner.as_mut()?;
        owner.dying = true;
        Some(Action::KillOwner)
    }

    pub(super) fn pause(&mut self) -> Vec<Action> {
        self.hold.paused = true;
        self.due = false;
        self.down = false;
        // They would be of an old build by the time they are needed.
        let starting = self.starting.take().map(|(backend, _)| backend);
        let idle = [self.spare.take(), starting, self.eio_backend.take()];
        let dismissed = idle.into_iter().flatten().map(Action::Dismiss);
        dismissed.chain(self.kill_owner()).collect()
    }

    pub(super) fn resume(&mut self) -> Vec<Action> {
        self.hold.paused = false;
        self.forget_failures();
        if self.owner.is_some() {
            // It is dying, and what follows follows then.
            return Vec::new();
        }
        let waiting = self.grant_waiting();
        if waiting.is_empty() && self.policy.has_program { vec![Action::Start] } else { waiting }
    }

    pub(super) fn fail_in_flight(&mut self) -> Vec<Action> {
        self.hold.failing = true;
        if self.owner.is_some() || self.eio_backend.is_some() {
            return self.kill_owner().into_iter().collect();
        }
        vec![Action::StartEioBackend]
    }

    pub(super) fn fail_done(&mut self) -> Vec<Action> {
        self.hold.failing = false;
        self.kill_owner().into_iter().collect()
    }

    /// The owner stays dying. Its successor executes again what it leaves, as after any death.
    pub(super) fn withdraw_fail(&mut self) -> Vec<Action> {
        self.hold.failing = false;
        Vec::new()
    }

    pub(super) fn hello_of_eio_backend(&mut self, backend: BackendId) -> Vec<Action> {
        self.eio_backend = None;
        match self.owner {
            None => self.grant(backend, Kind::EioBackend),
            // A backend was faster.
            Some(_) => vec![Action::Dismiss(backend)],
        }
    }

    /// The EIO backend has not got as far as being granted the lanes.
    pub(super) fn lose_eio_backend(&mut self) -> Vec<Action> {
        self.eio_backend = None;
        self.eio_backend_dead()
    }

    pub(super) fn eio_backend_dead(&mut self) -> Vec<Action> {
        // Its work is not done, or it would not be failing any more.
        let failed = std::mem::take(&mut self.hold.failing).then_some(Action::FailAborted);
        let next = if self.hold.paused || self.owner.is_some() {
            Vec::new()
        } else {
            self.grant_waiting()
        };
        failed.into_iter().chain(next).collect()
    }

    /// A backend has died, most probably by our hand.
    pub(super) fn dead_while_held(
        &mut self,
        owner: Owner,
        clean: bool,
        progressed: bool,
    ) -> Vec<Action> {
        if !self.hold.failing {
            return Vec::new();
        }
        let under_way = self.eio_backend.is_some();
        let mut actions: Vec<Action> =
            (!under_way).then_some(Action::StartEioBackend).into_iter().collect();
        // Its successor is started meanwhile, and waits.
        if !self.hold.paused && self.candidate.is_none() && self.spare.is_none() {
            actions.extend(self.choose_successor(owner, clean, progressed));
        }
        actions
    }
}

#[cfg(test)]
mod tests;
