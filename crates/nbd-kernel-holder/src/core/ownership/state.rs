//! Who has the lanes, who waits for them, and what is asked about that.

use super::event::NotStarted;
use crate::args::RestartWhen;
use crate::core::event::BackendId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) backend: BackendId,
    pub(super) ready: bool,
    pub(super) dying: bool,
    pub(super) kind: Kind,
}

/// Where an owner came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Started by us, so that we also start its successor.
    Program,
    /// From outside.
    Joined,
    /// Ours, to answer with EIO.
    EioBackend,
}

impl Kind {
    pub(super) fn of_backend(program: bool) -> Self {
        if program { Self::Program } else { Self::Joined }
    }
}

/// What a program is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To serve, now.
    Serve,
    /// To wait until it is needed.
    Spare,
}

/// What the backend is doing, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Running,
    Restarting,
    Waiting,
    Down,
    Paused,
    Failing,
}

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) when: RestartWhen,
    /// So many failures in a row, and no more.
    pub(super) limit: Option<u32>,
    pub(super) has_program: bool,
    pub(super) keeps_spare: bool,
}

/// What keeps backends from the lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hold {
    /// No backend is granted the lanes.
    pub(super) paused: bool,
    /// Only the EIO backend is.
    pub(super) failing: bool,
    /// No backend is granted them any more, only the EIO backend.
    pub(super) abandoned: bool,
    /// None is granted them any more.
    pub(super) shutting_down: bool,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// Tries that came to nothing; they make the pauses longer.
    pub(super) tries: u32,
    /// Those of them that were the backend's own fault, which a limit is for.
    pub(super) own: u32,
    pub(super) spare: u32,
}

/// The state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(super) policy: Policy,
    /// False until the device exists: then the first failure is the last.
    pub(super) attached: bool,
    pub(super) owner: Option<Owner>,
    /// A program on its way, and whether it is to replace a living owner.
    pub(super) starting: Option<(BackendId, Purpose)>,
    pub(super) candidate: Option<(BackendId, bool)>,
    /// A program that waits for the owner to die.
    pub(super) spare: Option<BackendId>,
    /// The EIO backend on its way.
    pub(super) eio_backend: Option<BackendId>,
    pub(super) hold: Hold,
    pub(super) due: bool,
    pub(super) down: bool,
    pub(super) failures: Failures,
    pub(super) restarts: u64,
}

impl Ownership {
    pub(crate) fn new(when: RestartWhen, limit: Option<u32>, has_program: bool) -> Self {
        Self {
            policy: Policy { when, limit, has_program, keeps_spare: false },
            attached: false,
            owner: None,
            starting: None,
            candidate: None,
            spare: None,
            eio_backend: None,
            hold: Hold::default(),
            due: false,
            down: false,
            failures: Failures::default(),
            restarts: 0,
        }
    }

    /// From now on failures are survived.
    pub(crate) fn set_attached(&mut self, restarts: u64) {
        self.attached = true;
        self.restarts = restarts;
    }

    /// The holder was replaced: this backend has the lanes already.
    pub(crate) fn adopt(&mut self, backend: BackendId, kind: Kind) {
        self.owner = Some(Owner { backend, ready: true, dying: false, kind });
    }

    /// A program was started as this backend, on [`Start`](super::Action::Start).
    pub(crate) fn started(&mut self, backend: BackendId) {
        self.starting = Some((backend, Purpose::Serve));
    }

    /// From now on there shall be a spare.
    pub(crate) fn keep_spare(&mut self) {
        self.policy.keeps_spare = true;
    }

    /// Whether a spare should be started; then call [`Self::started_spare`].
    pub(crate) fn wants_spare(&self) -> bool {
        let settled = self
            .owner
            .is_some_and(|owner| owner.ready && !owner.dying && owner.kind == Kind::Program);
        let alone = self.starting.is_none() && self.candidate.is_none() && self.spare.is_none();
        let staying = self.attached && !self.is_shutting_down() && !self.is_abandoned();
        let willing = self.policy.keeps_spare && staying && self.policy.when != RestartWhen::Never;
        settled && alone && willing
    }

    pub(crate) fn started_spare(&mut self, backend: BackendId) {
        self.starting = Some((backend, Purpose::Spare));
    }

    /// The spare is of an older build than the program is now.
    pub(crate) fn lose_spare(&mut self) -> Option<BackendId> {
        self.spare.take()
    }

    pub(crate) fn spare(&self) -> Option<BackendId> {
        self.spare
    }

    /// Whether a backend is the spare, or was started to be it.
    pub(crate) fn is_spare(&self, backend: BackendId) -> bool {
        self.spare == Some(backend) || self.is_starting(backend) == Some(Purpose::Spare)
    }

    pub(super) fn is_starting(&self, backend: BackendId) -> Option<Purpose> {
        self.starting.filter(|(starting, _)| *starting == backend).map(|(_, purpose)| purpose)
    }

    /// The operator names another program.
    pub(crate) fn set_has_program(&mut self) {
        self.policy.has_program = true;
    }

    pub(crate) fn has_program(&self) -> bool {
        self.policy.has_program
    }

    /// A backend that was to be started is not.
    pub(crate) fn not_started(&mut self, backend: BackendId) -> NotStarted {
        if self.eio_backend == Some(backend) {
            return NotStarted::EioBackend;
        }
        match self.is_starting(backend) {
            Some(Purpose::Serve) => {
                self.starting = None;
                NotStarted::Program
            }
            Some(Purpose::Spare) => {
                self.starting = None;
                self.spare_failed();
                NotStarted::Spare
            }
            None => NotStarted::Unknown,
        }
    }

    /// Whether a backend has the lanes, waits for them or is on its way.
    pub(crate) fn has(&self, backend: BackendId) -> bool {
        let known = [
            self.owner(),
            self.starting.map(|(backend, _)| backend),
            self.candidate.map(|(backend, _)| backend),
            self.spare,
            self.eio_backend,
        ];
        known.contains(&Some(backend))
    }

    /// Whether a backend is the EIO backend on its way.
    pub(crate) fn is_eio_backend_coming(&self, backend: BackendId) -> bool {
        self.eio_backend == Some(backend)
    }

    /// Whether the owner, which this backend is, answers with EIO only.
    pub(crate) fn is_eio_backend(&self, backend: BackendId) -> bool {
        self.owner.is_some_and(|it| it.backend == backend && it.kind == Kind::EioBackend)
    }

    pub(crate) fn owner(&self) -> Option<BackendId> {
        self.owner.map(|owner| owner.backend)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.owner
            .is_some_and(|owner| owner.ready && !owner.dying && owner.kind != Kind::EioBackend)
    }

    /// Whether no backend is about to be given the lanes or to lose them.
    pub(crate) fn is_settled(&self) -> bool {
        use Phase::{Down, Paused, Running, Waiting};
        let serving = self.starting.is_some_and(|(_, purpose)| purpose == Purpose::Serve);
        // In the pause before the next try there is nothing that a change could disturb.
        let pausing = self.owner.is_none() && self.due;
        let calm = pausing || matches!(self.phase(), Running | Waiting | Down | Paused);
        calm && !serving && self.candidate.is_none()
    }

    /// Whether the owner's death is awaited because we caused it.
    pub(crate) fn is_fencing(&self) -> bool {
        self.owner.is_some_and(|owner| owner.dying)
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.owner {
            Some(Owner { dying: true, .. }) => Phase::Restarting,
            Some(Owner { kind: Kind::EioBackend, .. }) => Phase::Failing,
            Some(Owner { ready: true, .. }) => Phase::Running,
            Some(_) => Phase::Starting,
            None if self.eio_backend.is_some() => Phase::Failing,
            None if self.hold.paused => Phase::Paused,
            None if self.starting.is_some() => Phase::Starting,
            None if self.due => Phase::Restarting,
            None if self.down => Phase::Down,
            None => Phase::Waiting,
        }
    }
}
