//! Who may serve the lanes: a state machine without any system call in it.
//!
//! A *backend* is a connection of a process that serves or wants to: the program that the holder
//! started, or one that joined. At most one backend owns the lanes. Another is granted them only
//! after the owner is dead; that is the fence.
//!
//! A *spare* is a program that was started while the owner lives, has introduced itself, and
//! waits: when the owner dies, nothing has to be started first.
//!
//! The *EIO backend* is a program of ours that executes nothing: it answers every request with EIO. It
//! is granted the lanes like any other and under the same fence; see [`pause`].

mod abandon;
mod pause;
mod retry;
mod shutdown;
mod succession;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::BackendId;
use crate::args::RestartWhen;
pub(crate) use retry::LONGEST_PAUSE;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A backend has introduced itself acceptably.
    Hello { backend: BackendId, takeover: bool },
    /// A backend that does not own the lanes is gone.
    Gone { backend: BackendId },
    /// The program could not even be started; `shortage`: for want of memory, descriptors or space.
    StartFailed { shortage: bool },
    /// The owner has answered, or has stayed for long enough: its predecessors' failures are over.
    Stable,
    /// The owner has recovered and is serving.
    Ready { backend: BackendId },
    /// No thread of the owner can run any more.
    OwnerDead { clean: bool, progressed: bool },
    /// The time of [`Action::StartAfter`] has come.
    Due,
    /// The operator wants a new backend, and replaces a living one.
    Restart,
    /// The operator wants no backend to have the lanes.
    Pause,
    /// And now one again.
    Resume,
    /// What is in flight is to be answered with EIO, at the cost of an owner that lives.
    Fail,
    /// That is done.
    FailDone,
    /// The owner does not die, so nothing is answered for it.
    FailWithdrawn,
    /// Requests have waited for a backend for as long as they are to.
    Unserved,
    /// The EIO backend could not even be started.
    EioBackendFailed,
    /// The device is given up: all requests are answered with EIO until it is taken down.
    Abandon,
    /// The device is being taken down.
    ShutDown,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the program; then call [`Ownership::started`].
    Start,
    /// Send [`Event::Due`] after a while.
    StartAfter(Duration),
    /// Give the lanes to this backend.
    Grant(BackendId),
    /// Tell this backend that it is not wanted, and forget it.
    Refuse(BackendId, Refusal),
    /// Kill the owner.
    KillOwner,
    /// Kill this program: it is no longer needed.
    Dismiss(BackendId),
    /// Too many failures, or none is allowed: wait for the operator.
    GiveUp,
    /// The owner keeps the lanes, as its replacement failed.
    ReplacementFailed,
    /// Start the EIO backend; then call [`Ownership::started_eio_backend`].
    StartEioBackend,
    /// What is in flight was not answered, as the EIO backend came to nothing.
    FailAborted,
}

/// Why a backend is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is an owner, and it was not asked to go.
    Served,
    /// Another one is already waiting for the owner's death.
    Taken,
    /// There is nothing to serve any more.
    ShuttingDown,
    /// Its storage has not grown to what is wanted.
    TooSmall { size: u64 },
}

/// What a backend was to be that could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotStarted {
    Program,
    Spare,
    EioBackend,
    /// It is not wanted any more.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    backend: BackendId,
    ready: bool,
    dying: bool,
    kind: Kind,
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
    fn of_backend(program: bool) -> Self {
        if program { Self::Program } else { Self::Joined }
    }
}

/// What a program is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
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

/// The state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    when: RestartWhen,
    limit: Option<u32>,
    has_program: bool,
    /// False until the device exists: then the first failure is the last.
    attached: bool,
    owner: Option<Owner>,
    /// A program on its way, and whether it is to replace a living owner.
    starting: Option<(BackendId, Purpose)>,
    candidate: Option<(BackendId, bool)>,
    /// A program that waits for the owner to die.
    spare: Option<BackendId>,
    keeps_spare: bool,
    spare_failures: u32,
    /// The EIO backend on its way.
    eio_backend: Option<BackendId>,
    /// No backend is granted the lanes.
    paused: bool,
    /// Only the EIO backend is.
    failing: bool,
    /// No backend is granted them any more, only the EIO backend.
    abandoned: bool,
    due: bool,
    down: bool,
    /// Tries in a row that came to nothing; they make the pauses longer.
    tries: u32,
    /// Those of them that were the backend's own fault, which a limit is for.
    failures: u32,
    restarts: u64,
    /// None is granted them any more.
    shutting_down: bool,
}

impl Ownership {
    pub(crate) fn new(when: RestartWhen, limit: Option<u32>, has_program: bool) -> Self {
        Self {
            when,
            limit,
            has_program,
            attached: false,
            owner: None,
            starting: None,
            candidate: None,
            spare: None,
            keeps_spare: false,
            spare_failures: 0,
            eio_backend: None,
            paused: false,
            failing: false,
            abandoned: false,
            due: false,
            down: false,
            tries: 0,
            failures: 0,
            restarts: 0,
            shutting_down: false,
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

    /// A program was started as this backend, on [`Action::Start`].
    pub(crate) fn started(&mut self, backend: BackendId) {
        self.starting = Some((backend, Purpose::Serve));
    }

    /// From now on there shall be a spare.
    pub(crate) fn keep_spare(&mut self) {
        self.keeps_spare = true;
    }

    /// Whether a spare should be started; then call [`Self::started_spare`].
    pub(crate) fn wants_spare(&self) -> bool {
        let settled = self
            .owner
            .is_some_and(|owner| owner.ready && !owner.dying && owner.kind == Kind::Program);
        let alone = self.starting.is_none() && self.candidate.is_none() && self.spare.is_none();
        let staying = self.attached && !self.is_shutting_down() && !self.is_abandoned();
        let willing = self.keeps_spare && staying && self.when != RestartWhen::Never;
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

    fn is_starting(&self, backend: BackendId) -> Option<Purpose> {
        self.starting.filter(|(starting, _)| *starting == backend).map(|(_, purpose)| purpose)
    }

    /// The operator names another program.
    pub(crate) fn set_has_program(&mut self) {
        self.has_program = true;
    }

    pub(crate) fn has_program(&self) -> bool {
        self.has_program
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
            None if self.paused => Phase::Paused,
            None if self.starting.is_some() => Phase::Starting,
            None if self.due => Phase::Restarting,
            None if self.down => Phase::Down,
            None => Phase::Waiting,
        }
    }

    /// Takes an event and says what to do.
    pub(crate) fn apply(&mut self, event: &Event) -> Vec<Action> {
        if self.is_shutting_down() {
            return self.apply_shutdown(event);
        }
        if self.is_abandoned() {
            return self.apply_abandoned(event);
        }
        match *event {
            Event::Hello { backend, takeover } => self.hello(backend, takeover),
            Event::Gone { backend } => self.gone(backend),
            Event::StartFailed { shortage } => self.fail(shortage),
            Event::Stable => {
                self.forget_failures();
                Vec::new()
            }
            Event::Ready { backend } => {
                if let Some(owner) = self.owner.as_mut().filter(|owner| owner.backend == backend) {
                    owner.ready = true;
                    self.spare_failures = 0;
                }
                Vec::new()
            }
            Event::OwnerDead { clean, progressed } => self.owner_dead(clean, progressed),
            Event::Due => {
                self.due = false;
                if !self.has_backend() && self.starting.is_none() {
                    vec![Action::Start]
                } else {
                    Vec::new()
                }
            }
            Event::Restart => self.restart(),
            Event::Pause => self.pause(),
            Event::Resume => self.resume(),
            Event::Fail => self.fail_in_flight(),
            Event::FailDone => self.fail_done(),
            Event::FailWithdrawn => self.withdraw_fail(),
            Event::Unserved if self.is_unserved() => vec![Action::StartEioBackend],
            Event::Unserved => Vec::new(),
            Event::EioBackendFailed => self.lose_eio_backend(),
            Event::Abandon => self.abandon(),
            Event::ShutDown => self.shut_down(),
        }
    }

    fn restart(&mut self) -> Vec<Action> {
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

    fn hello(&mut self, backend: BackendId, takeover: bool) -> Vec<Action> {
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

    fn grant(&mut self, backend: BackendId, kind: Kind) -> Vec<Action> {
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

    fn gone(&mut self, backend: BackendId) -> Vec<Action> {
        if self.eio_backend == Some(backend) {
            return self.lose_eio_backend();
        }
        if let Some((_, program)) = self.candidate.take_if(|(candidate, _)| *candidate == backend) {
            // While there is a backend, it is that one's end that is waited for.
            let alone = program && !self.has_backend() && !self.paused;
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
    fn fail(&mut self, shortage: bool) -> Vec<Action> {
        if self.has_backend() {
            return vec![Action::ReplacementFailed];
        }
        self.count_failure(shortage);
        self.again()
    }
}
