//! Backends that come, and those that go without having had the lanes.

use super::{Action, BackendId, Kind, Owner, Ownership, Purpose, Refusal};

impl Ownership {
    pub(super) fn restart(&mut self) -> Vec<Action> {
        self.forget_failures();
        self.due = false;
        self.down = false;
        // Whatever is there was started when the program may have been another one.
        let mut actions: Vec<Action> =
            [self.spare.take(), self.starting.take().map(|(backend, _)| backend)]
                .into_iter()
                .flatten()
                .map(Action::Dismiss)
                .collect();
        actions.push(Action::Start);
        actions
    }

    pub(super) fn hello(&mut self, backend: BackendId, takeover: bool) -> Vec<Action> {
        if self.eio_backend == Some(backend) {
            return self.hello_of_eio_backend(backend);
        }
        let purpose = self.is_starting(backend);
        let program = purpose.is_some();
        if program {
            self.starting = None;
        }
        if purpose == Some(Purpose::Spare) && self.has_backend() {
            self.spare = Some(backend);
            return Vec::new();
        }
        if self.owner.is_none() && !self.is_held() {
            let mut actions = self.grant(backend, Kind::of_backend(program));
            // Somebody joined while our own program was on its way.
            actions.extend(self.starting.take().map(|(backend, _)| Action::Dismiss(backend)));
            return actions;
        }
        if self.candidate.is_some() {
            return vec![Action::Refuse(backend, Refusal::Taken)];
        }
        if self.has_backend() && !takeover && !program {
            return vec![Action::Refuse(backend, Refusal::Served)];
        }
        self.candidate = Some((backend, program));
        // The EIO backend finishes first what it was ordered to do.
        if self.is_held() { Vec::new() } else { self.kill_owner().into_iter().collect() }
    }

    pub(super) fn grant(&mut self, backend: BackendId, kind: Kind) -> Vec<Action> {
        self.owner = Some(Owner { backend, ready: false, dying: false, kind });
        if kind == Kind::EioBackend {
            return vec![Action::Grant(backend)];
        }
        self.due = false;
        self.down = false;
        if self.attached {
            self.restarts += 1;
        }
        vec![Action::Grant(backend)]
    }

    pub(super) fn gone(&mut self, backend: BackendId) -> Vec<Action> {
        if self.eio_backend == Some(backend) {
            return self.lose_eio_backend();
        }
        if let Some((_, program)) = self.candidate.take_if(|(candidate, _)| *candidate == backend) {
            // While there is a backend, it is that one's end that is waited for.
            let alone = program && !self.has_backend() && !self.hold.paused;
            return if alone { self.fail(false) } else { Vec::new() };
        }
        if self.spare == Some(backend) {
            self.spare_failed();
            return Vec::new();
        }
        let Some(purpose) = self.is_starting(backend) else { return Vec::new() };
        self.starting = None;
        if purpose == Purpose::Spare && self.has_backend() {
            self.spare_failed();
            return Vec::new();
        }
        self.fail(false)
    }

    /// The program did not get as far as serving.
    pub(super) fn fail(&mut self, shortage: bool) -> Vec<Action> {
        if self.has_backend() {
            return vec![Action::ReplacementFailed];
        }
        self.count_failure(shortage);
        self.again()
    }
}
