//! Which backend follows an owner that has died.

use super::{Action, Kind, Owner, Ownership, Purpose};
use crate::args::RestartWhen;

impl Ownership {
    pub(super) fn owner_dead(&mut self, clean: bool, progressed: bool) -> Vec<Action> {
        let Some(owner) = self.owner.take() else { return Vec::new() };
        if owner.kind == Kind::EioBackend {
            return self.eio_backend_dead();
        }
        if self.is_held() {
            return self.dead_while_held(owner, clean, progressed);
        }
        match self.candidate.is_some() {
            true => self.grant_waiting(),
            false => self.choose_successor(owner, clean, progressed),
        }
    }

    /// The lanes for a backend that waits for them; the candidate is wanted more than the spare.
    pub(super) fn grant_waiting(&mut self) -> Vec<Action> {
        if let Some((backend, program)) = self.candidate.take() {
            let mut actions = self.grant(backend, Kind::of_backend(program));
            if !program {
                let starting = self.starting.take().map(|(backend, _)| backend);
                let unwanted = [self.spare.take(), starting].into_iter().flatten();
                actions.extend(unwanted.map(Action::Dismiss));
            }
            return actions;
        }
        match self.spare.take() {
            Some(spare) => self.grant(spare, Kind::Program),
            None => Vec::new(),
        }
    }

    /// No backend waits for the lanes of one that has died: what the policy says.
    pub(super) fn choose_successor(
        &mut self,
        owner: Owner,
        clean: bool,
        progressed: bool,
    ) -> Vec<Action> {
        let stays_down = owner.kind != Kind::Program
            || match self.policy.when {
                RestartWhen::Never => true,
                RestartWhen::OnFailure => clean,
                RestartWhen::Always => false,
            };
        let replacing = self.starting.is_some_and(|(_, purpose)| purpose == Purpose::Serve);
        if self.attached && stays_down && !replacing {
            let idle = self.spare.take().or(self.starting.take().map(|(backend, _)| backend));
            return idle.map(Action::Dismiss).into_iter().collect();
        }
        match owner.ready && progressed {
            true => self.forget_failures(),
            false => self.count_failure(false),
        }
        if self.starting.is_some() {
            // It is on its way, whatever it was started for.
            return Vec::new();
        }
        match self.spare.take() {
            Some(spare) if self.failures.tries == 0 => self.grant(spare, Kind::Program),
            Some(spare) => {
                // It would be as short-lived as the last one; the pause comes first.
                let mut actions = vec![Action::Dismiss(spare)];
                actions.extend(self.again());
                actions
            }
            None => self.again(),
        }
    }
}
