//! Who may serve the lanes: a state machine without any system call in it.
//!
//! A *peer* is a connection of a process that serves or wants to: the program that the holder
//! started, or one that joined. At most one peer owns the lanes. Another is granted them only
//! after the owner is dead; that is the fence.
//!
//! A *spare* is a program that was started while the owner lives, has introduced itself, and
//! waits: when the owner dies, nothing has to be started first.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::args::RestartWhen;

/// Number of a peer, never reused.
pub(crate) type PeerId = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A peer has introduced itself acceptably.
    Hello { peer: PeerId, takeover: bool },
    /// A peer that does not own the lanes is gone.
    Gone { peer: PeerId },
    /// The program could not even be started.
    StartFailed,
    /// The owner has recovered and is serving.
    Ready { peer: PeerId },
    /// No thread of the owner can run any more.
    OwnerDead { clean: bool, progressed: bool },
    /// The time of [`Action::StartAfter`] has come.
    Due,
    /// The operator wants a new backend, and replaces a living one.
    Restart,
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
}

/// Why a peer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is an owner, and it was not asked to go.
    Served,
    /// Another one is already waiting for the owner's death.
    Taken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    peer: PeerId,
    ready: bool,
    dying: bool,
    /// Started by us, so that we also start its successor.
    program: bool,
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
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Supervisor {
    when: RestartWhen,
    limit: u32,
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
    due: bool,
    down: bool,
    failures: u32,
    restarts: u64,
}

/// A spare that fails so often is not tried again before the owner changes.
const SPARE_TRIES: u32 = 2;
/// Failures in a row double the pause from this …
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Supervisor {
    pub(crate) fn new(when: RestartWhen, limit: u32, has_program: bool) -> Self {
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
            due: false,
            down: false,
            failures: 0,
            restarts: 0,
        }
    }

    /// From now on failures are survived.
    pub(crate) fn set_attached(&mut self, restarts: u64) {
        self.attached = true;
        self.restarts = restarts;
    }

    /// The holder was replaced: this peer has the lanes already.
    pub(crate) fn adopt(&mut self, peer: PeerId, program: bool) {
        self.owner = Some(Owner { peer, ready: true, dying: false, program });
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
        let settled = self.owner.is_some_and(|owner| owner.ready && !owner.dying && owner.program);
        let alone = self.starting.is_none() && self.candidate.is_none() && self.spare.is_none();
        let willing = self.keeps_spare && self.attached && self.when != RestartWhen::Never;
        settled && alone && willing && self.spare_failures < SPARE_TRIES
    }

    pub(crate) fn started_spare(&mut self, peer: PeerId) {
        self.starting = Some((peer, Purpose::Spare));
    }

    /// The spare could not be started, or is of an older build than the program is now.
    pub(crate) fn lose_spare(&mut self) -> Option<PeerId> {
        self.spare_failures += 1;
        self.spare.take()
    }

    pub(crate) fn spare(&self) -> Option<PeerId> {
        self.spare
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
        self.owner.is_some_and(|owner| owner.ready && !owner.dying)
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
            Some(Owner { ready: true, .. }) => Phase::Running,
            Some(_) => Phase::Starting,
            None if self.starting.is_some() => Phase::Starting,
            None if self.due => Phase::Restarting,
            None if self.down => Phase::Down,
            None => Phase::Waiting,
        }
    }

    /// Takes an event and says what to do.
    pub(crate) fn apply(&mut self, event: &Event) -> Vec<Action> {
        match *event {
            Event::Hello { peer, takeover } => self.hello(peer, takeover),
            Event::Gone { peer } => self.gone(peer),
            Event::StartFailed => self.fail(),
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
                if self.owner.is_none() && self.starting.is_none() {
                    vec![Action::Start]
                } else {
                    Vec::new()
                }
            }
            Event::Restart => self.restart(),
        }
    }

    fn restart(&mut self) -> Vec<Action> {
        self.failures = 0;
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
        let purpose = self.is_starting(peer);
        let program = purpose.is_some();
        if program {
            self.starting = None;
        }
        if purpose == Some(Purpose::Spare) && self.owner.is_some() {
            self.spare = Some(peer);
            return Vec::new();
        }
        let Some(owner) = self.owner.as_mut() else {
            let mut actions = self.grant(peer, program);
            // Somebody joined while our own program was on its way.
            actions.extend(self.starting.take().map(|(peer, _)| Action::Dismiss(peer)));
            return actions;
        };
        if self.candidate.is_some() {
            return vec![Action::Refuse(peer, Refusal::Taken)];
        }
        if !takeover && !program {
            return vec![Action::Refuse(peer, Refusal::Served)];
        }
        owner.dying = true;
        self.candidate = Some((peer, program));
        vec![Action::KillOwner]
    }

    fn grant(&mut self, peer: PeerId, program: bool) -> Vec<Action> {
        self.owner = Some(Owner { peer, ready: false, dying: false, program });
        self.due = false;
        self.down = false;
        if self.attached {
            self.restarts += 1;
        }
        vec![Action::Grant(peer)]
    }

    fn gone(&mut self, peer: PeerId) -> Vec<Action> {
        if self.candidate.is_some_and(|(candidate, _)| candidate == peer) {
            self.candidate = None;
            return Vec::new();
        }
        if self.spare == Some(peer) {
            self.lose_spare();
            return Vec::new();
        }
        let Some(purpose) = self.is_starting(peer) else { return Vec::new() };
        self.starting = None;
        if purpose == Purpose::Spare && self.owner.is_some() {
            self.spare_failures += 1;
            return Vec::new();
        }
        self.fail()
    }

    /// The program did not get as far as serving.
    fn fail(&mut self) -> Vec<Action> {
        if self.owner.is_some() {
            return vec![Action::ReplacementFailed];
        }
        self.failures += 1;
        self.again()
    }

    fn owner_dead(&mut self, clean: bool, progressed: bool) -> Vec<Action> {
        let Some(owner) = self.owner.take() else { return Vec::new() };
        if let Some((peer, program)) = self.candidate.take() {
            let mut actions = self.grant(peer, program);
            if !program {
                actions.extend(self.spare.take().map(Action::Dismiss));
            }
            return actions;
        }
        let stays_down = !owner.program
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
        self.failures = if owner.ready && progressed { 0 } else { self.failures + 1 };
        if self.starting.is_some() {
            // It is on its way, whatever it was started for.
            return Vec::new();
        }
        match self.spare.take() {
            Some(spare) if self.failures == 0 => self.grant(spare, true),
            Some(spare) => {
                // It would be as short-lived as the last one; the pause comes first.
                let mut actions = vec![Action::Dismiss(spare)];
                actions.extend(self.again());
                actions
            }
            None => self.again(),
        }
    }

    fn again(&mut self) -> Vec<Action> {
        if !self.attached || !self.has_program || self.failures > self.limit {
            self.down = true;
            return vec![Action::GiveUp];
        }
        if self.failures == 0 {
            return vec![Action::Start];
        }
        self.due = true;
        let doubled = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(16));
        vec![Action::StartAfter(doubled.min(LONGEST_PAUSE))]
    }
}
