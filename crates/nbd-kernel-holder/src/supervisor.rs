//! Who may serve the lanes: a state machine without any system call in it.
//!
//! A *peer* is a connection of a process that serves or wants to: the program that the holder
//! started, or one that joined. At most one peer owns the lanes. Another is granted them only
//! after the owner is dead; that is the fence.
//!
//! A *spare* is a program that was started while the owner lives, has introduced itself, and
//! waits: when the owner dies, nothing has to be started first.
//!
//! The *stand-in* is a program of ours that executes nothing: it answers every request with EIO. It
//! is granted the lanes like any other and under the same fence; see [`orders`].

mod abandon;
mod orders;
mod parting;
mod retry;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::args::RestartWhen;
pub(crate) use retry::LONGEST_PAUSE;

/// Number of a peer, never reused.
pub(crate) type PeerId = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A peer has introduced itself acceptably.
    Hello { peer: PeerId, takeover: bool },
    /// A peer that does not own the lanes is gone.
    Gone { peer: PeerId },
    /// The program could not even be started; `shortage`: for want of memory, descriptors or space.
    StartFailed { shortage: bool },
    /// The owner has answered, or has stayed for long enough: its predecessors' failures are over.
    Stable,
    /// The owner has recovered and is serving.
    Ready { peer: PeerId },
    /// No thread of the owner can run any more.
    OwnerDead { clean: bool, progressed: bool },
    /// The time of [`Action::StartAfter`] has come.
    Due,
    /// The operator wants a new backend, and replaces a living one.
    Restart,
    /// The operator wants nobody to have the lanes.
    Pause,
    /// And now somebody again.
    Resume,
    /// What is in flight is to be answered with EIO, at the cost of an owner that lives.
    Fail,
    /// That is done.
    FailDone,
    /// The owner does not die, so nothing is answered for it.
    FailWithdrawn,
    /// Requests have waited for a backend for as long as they are to.
    Unserved,
    /// The stand-in could not even be started.
    NoStandIn,
    /// The device is given up: all requests are answered with EIO until it is taken down.
    Abandon,
    /// The device is being taken down.
    Part,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the program; then call [`Supervisor::started`].
    Start,
    /// Send [`Event::Due`] after a while.
    StartAfter(Duration),
    /// Give the lanes to this peer.
    Grant(PeerId),
    /// Tell this peer that it is not wanted, and forget it.
    Refuse(PeerId, Refusal),
    /// Kill the owner.
    KillOwner,
    /// Kill this program: it is no longer needed.
    Dismiss(PeerId),
    /// Too many failures, or none is allowed: wait for the operator.
    GiveUp,
    /// The owner keeps the lanes, as its replacement failed.
    ReplacementFailed,
    /// Start the stand-in; then call [`Supervisor::started_stand_in`].
    StartStandIn,
    /// What is in flight was not answered, as the stand-in came to nothing.
    FailFailed,
}

/// Why a peer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is an owner, and it was not asked to go.
    Served,
    /// Another one is already waiting for the owner's death.
    Taken,
    /// There is nothing to serve any more.
    Parting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    peer: PeerId,
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
    StandIn,
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
#[derive(Debug)]
pub(crate) struct Supervisor {
    when: RestartWhen,
    limit: Option<u32>,
    has_program: bool,
    /// False until the device exists: then the first failure is the last.
    attached: bool,
    owner: Option<Owner>,
    /// A program on its way, and whether it is to replace a living owner.
    starting: Option<(PeerId, Purpose)>,
    candidate: Option<(PeerId, bool)>,
    /// A program that waits for the owner to die.
    spare: Option<PeerId>,
    keeps_spare: bool,
    spare_failures: u32,
    /// The stand-in on its way.
    stand_in: Option<PeerId>,
    /// Nobody is granted the lanes.
    paused: bool,
    /// Nobody but the stand-in is.
    failing: bool,
    /// No backend is granted them any more, only the stand-in.
    abandoned: bool,
    due: bool,
    down: bool,
    /// Tries in a row that came to nothing; they make the pauses longer.
    tries: u32,
    /// Those of them that were the backend's own fault, which a limit is for.
    failures: u32,
    restarts: u64,
    /// Nobody is granted the lanes any more.
    parting: bool,
}

impl Supervisor {
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
            stand_in: None,
            paused: false,
            failing: false,
            abandoned: false,
            due: false,
            down: false,
            tries: 0,
            failures: 0,
            restarts: 0,
            parting: false,
        }
    }

    /// From now on failures are survived.
    pub(crate) fn set_attached(&mut self, restarts: u64) {
        self.attached = true;
        self.restarts = restarts;
    }

    /// The holder was replaced: this peer has the lanes already.
    pub(crate) fn adopt(&mut self, peer: PeerId, kind: Kind) {
        self.owner = Some(Owner { peer, ready: true, dying: false, kind });
    }

    /// A program was started as this peer, on [`Action::Start`].
    pub(crate) fn started(&mut self, peer: PeerId) {
        self.starting = Some((peer, Purpose::Serve));
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
        let staying = self.attached && !self.is_parting() && !self.is_abandoned();
        let willing = self.keeps_spare && staying && self.when != RestartWhen::Never;
        settled && alone && willing
    }

    pub(crate) fn started_spare(&mut self, peer: PeerId) {
        self.starting = Some((peer, Purpose::Spare));
    }

    /// The spare is of an older build than the program is now.
    pub(crate) fn lose_spare(&mut self) -> Option<PeerId> {
        self.spare.take()
    }

    pub(crate) fn spare(&self) -> Option<PeerId> {
        self.spare
    }

    /// Whether a peer is the spare, or was started to be it.
    pub(crate) fn is_spare(&self, peer: PeerId) -> bool {
        self.spare == Some(peer) || self.is_starting(peer) == Some(Purpose::Spare)
    }

    fn is_starting(&self, peer: PeerId) -> Option<Purpose> {
        self.starting.filter(|(starting, _)| *starting == peer).map(|(_, purpose)| purpose)
    }

    /// The operator names another program.
    pub(crate) fn set_has_program(&mut self) {
        self.has_program = true;
    }

    pub(crate) fn owner(&self) -> Option<PeerId> {
        self.owner.map(|owner| owner.peer)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.owner.is_some_and(|owner| owner.ready && !owner.dying && owner.kind != Kind::StandIn)
    }

    /// Whether nobody is about to be given the lanes or to lose them.
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
            Some(Owner { kind: Kind::StandIn, .. }) => Phase::Failing,
            Some(Owner { ready: true, .. }) => Phase::Running,
            Some(_) => Phase::Starting,
            None if self.stand_in.is_some() => Phase::Failing,
            None if self.paused => Phase::Paused,
            None if self.starting.is_some() => Phase::Starting,
            None if self.due => Phase::Restarting,
            None if self.down => Phase::Down,
            None => Phase::Waiting,
        }
    }

    /// Takes an event and says what to do.
    pub(crate) fn apply(&mut self, event: &Event) -> Vec<Action> {
        if self.is_parting() {
            return self.apply_parting(event);
        }
        if self.is_abandoned() {
            return self.apply_abandoned(event);
        }
        match *event {
            Event::Hello { peer, takeover } => self.hello(peer, takeover),
            Event::Gone { peer } => self.gone(peer),
            Event::StartFailed { shortage } => self.fail(shortage),
            Event::Stable => {
                self.forget_failures();
                Vec::new()
            }
            Event::Ready { peer } => {
                if let Some(owner) = self.owner.as_mut().filter(|owner| owner.peer == peer) {
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
            Event::Unserved if self.is_unserved() => vec![Action::StartStandIn],
            Event::Unserved => Vec::new(),
            Event::NoStandIn => self.lose_stand_in(),
            Event::Abandon => self.abandon(),
            Event::Part => self.part(),
        }
    }

    fn restart(&mut self) -> Vec<Action> {
        self.forget_failures();
        self.due = false;
        self.down = false;
        // Whatever is there was started when the program may have been another one.
        let mut actions: Vec<Action> =
            [self.spare.take(), self.starting.take().map(|(peer, _)| peer)]
                .into_iter()
                .flatten()
                .map(Action::Dismiss)
                .collect();
        actions.push(Action::Start);
        actions
    }

    fn hello(&mut self, peer: PeerId, takeover: bool) -> Vec<Action> {
        if self.stand_in == Some(peer) {
            return self.hello_of_stand_in(peer);
        }
        let purpose = self.is_starting(peer);
        let program = purpose.is_some();
        if program {
            self.starting = None;
        }
        if purpose == Some(Purpose::Spare) && self.has_backend() {
            self.spare = Some(peer);
            return Vec::new();
        }
        if self.owner.is_none() && !self.is_held() {
            let mut actions = self.grant(peer, Kind::of_backend(program));
            // Somebody joined while our own program was on its way.
            actions.extend(self.starting.take().map(|(peer, _)| Action::Dismiss(peer)));
            return actions;
        }
        if self.candidate.is_some() {
            return vec![Action::Refuse(peer, Refusal::Taken)];
        }
        if self.has_backend() && !takeover && !program {
            return vec![Action::Refuse(peer, Refusal::Served)];
        }
        self.candidate = Some((peer, program));
        // The stand-in finishes first what it was ordered to do.
        if self.is_held() { Vec::new() } else { self.evict().into_iter().collect() }
    }

    fn grant(&mut self, peer: PeerId, kind: Kind) -> Vec<Action> {
        self.owner = Some(Owner { peer, ready: false, dying: false, kind });
        if kind == Kind::StandIn {
            return vec![Action::Grant(peer)];
        }
        self.due = false;
        self.down = false;
        if self.attached {
            self.restarts += 1;
        }
        vec![Action::Grant(peer)]
    }

    fn gone(&mut self, peer: PeerId) -> Vec<Action> {
        if self.stand_in == Some(peer) {
            return self.lose_stand_in();
        }
        if let Some((_, program)) = self.candidate.take_if(|(candidate, _)| *candidate == peer) {
            // While there is a backend, it is that one's end that is waited for.
            let alone = program && !self.has_backend() && !self.paused;
            return if alone { self.fail(false) } else { Vec::new() };
        }
        if self.spare == Some(peer) {
            self.spare_failed();
            return Vec::new();
        }
        let Some(purpose) = self.is_starting(peer) else { return Vec::new() };
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

    fn owner_dead(&mut self, clean: bool, progressed: bool) -> Vec<Action> {
        let Some(owner) = self.owner.take() else { return Vec::new() };
        if owner.kind == Kind::StandIn {
            return self.stand_in_dead();
        }
        if self.is_held() {
            return self.dead_while_held(owner, clean, progressed);
        }
        match self.candidate.is_some() {
            true => self.grant_waiting(),
            false => self.succeed(owner, clean, progressed),
        }
    }

    /// The lanes for whoever waits for them; the candidate is wanted more than the spare.
    fn grant_waiting(&mut self) -> Vec<Action> {
        if let Some((peer, program)) = self.candidate.take() {
            let mut actions = self.grant(peer, Kind::of_backend(program));
            if !program {
                let starting = self.starting.take().map(|(peer, _)| peer);
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

    /// Nobody waits for the lanes of a backend that has died: what the policy says.
    fn succeed(&mut self, owner: Owner, clean: bool, progressed: bool) -> Vec<Action> {
        let stays_down = owner.kind != Kind::Program
            || match self.when {
                RestartWhen::Never => true,
                RestartWhen::OnFailure => clean,
                RestartWhen::Always => false,
            };
        let replacing = self.starting.is_some_and(|(_, purpose)| purpose == Purpose::Serve);
        if self.attached && stays_down && !replacing {
            let idle = self.spare.take().or(self.starting.take().map(|(peer, _)| peer));
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
            Some(spare) if self.tries == 0 => self.grant(spare, Kind::Program),
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
