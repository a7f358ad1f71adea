//! The model of what surrounds the core: processes, driver, disk and clients.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nbd_device_users::User;
use nix::errno::Errno;

use super::super::event::{Flushed, Resized, SetupRefused, UsersUnknown};
use super::super::ownership::Ownership;
use super::super::{
    BackendId, ClientId, Command, Condition, Config, Core, End, Event, HelperId, HelperTask, Order,
    OwnerEnd, Report, Revision, Sitter, Survey,
};
use crate::args::RestartWhen;

/// The size of the device, in bytes.
pub(super) const SIZE: u64 = 1 << 20;
/// How many orders one exploration has, and how often a state cannot be written.
const MAX_ORDERS: usize = 2;
const MAX_FAILURES: usize = 1;

/// How far a backend has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Waiting,
    Granted,
    Serving,
}

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Open,
    Answered,
    /// The client does not listen any more.
    Gone,
}

#[derive(Clone, Debug, Default)]
pub(super) struct World {
    backends: BTreeMap<BackendId, Stage>,
    /// The one that the state on the file names.
    persisted: Option<BackendId>,
    persisted_sitter: bool,
    /// Writes whose outcome is open: revision, and what is written.
    writing: Vec<(Revision, Option<BackendId>, bool)>,
    surveys: usize,
    becoming: bool,
    left_scans: Vec<HelperId>,
    refused: Vec<BackendId>,
    helpers: BTreeMap<HelperId, HelperTask>,
    clients: BTreeMap<ClientId, Asked>,
    sitter_sits: bool,
    sitter_said: bool,
    lanes_ended: bool,
    joined: bool,
    failures: usize,
    stopped: bool,
    lanes_closed: bool,
    damaged: bool,
}

/// A core that is about to attach.
pub(super) fn core(netlink: bool, now: Instant) -> Core {
    let mut ownership = Ownership::new(RestartWhen::OnFailure, None, true);
    ownership.keep_spare();
    let config = Config {
        netlink,
        given: true,
        exists: true,
        ready_timeout: Some(Duration::from_secs(30)),
        loss_limit: Some(Duration::from_secs(30)),
    };
    Core::new(config, ownership, now)
}

/// The number of a client that orders before the exploration begins.
pub(super) fn first_client() -> ClientId {
    ClientId(1999)
}

impl World {
    /// The world of an adopted device.
    pub(super) fn of_adopted(owner: BackendId) -> Self {
        Self {
            backends: BTreeMap::from([(owner, Stage::Serving)]),
            persisted: Some(owner),
            persisted_sitter: true,
            sitter_sits: true,
            sitter_said: true,
            ..Self::default()
        }
    }

    /// Carries a command out; the error is a promise that it breaks.
    pub(super) fn carry_out(&mut self, command: &Command, core: &Core) -> Result<(), String> {
        match command {
            Command::StartProgram { backend, .. }
            | Command::StartSpare { backend }
            | Command::StartEioBackend { backend } => {
                if self.lanes_ended {
                    return Err(format!("{command:?} although the lanes have ended"));
                }
                self.backends.insert(*backend, Stage::Starting);
            }
            Command::Grant { backend } => return self.grant(*backend),
            Command::Refuse { backend, .. } => {
                if matches!(self.backends.get(backend), Some(Stage::Granted | Stage::Serving)) {
                    return Err(format!("{backend:?} is refused although it has the lanes"));
                }
                self.backends.remove(backend);
                self.refused.push(*backend);
            }
            Command::Dismiss { backend } => {
                if matches!(self.backends.get(backend), Some(Stage::Granted | Stage::Serving)) {
                    return Err(format!("{backend:?} is forgotten although it has the lanes"));
                }
                self.backends.remove(backend);
            }
            Command::KillBackends => self.backends.clear(),
            Command::PersistState { revision } => {
                let sits = core.device.sitter == Sitter::Sits;
                self.writing.push((*revision, core.ownership.owner(), sits));
            }
            Command::StartHelper { id, task } => {
                self.helpers.insert(*id, task.clone());
            }
            Command::LeaveHelper { id } => {
                // A scan tells what it has found so far.
                let is_scan = self.helpers.remove(id) == Some(HelperTask::FindUsers);
                self.left_scans.extend(is_scan.then_some(*id));
            }
            Command::StartSitter => self.sitter_sits = true,
            Command::LetSitterGo if !self.persisted_sitter => {
                return Err("the driver gets the lanes before the state names the sitter".into());
            }
            Command::ForgetSitter => self.sitter_sits = false,
            Command::EndLanes => self.lanes_ended = true,
            Command::Survey { .. } => self.surveys += 1,
            Command::BecomeProgram { .. } => self.becoming = true,
            Command::Reply { client, reply } => {
                let asked = self.clients.get_mut(client);
                let twice = || format!("{client:?} is answered twice, now with {reply:?}");
                match asked {
                    Some(asked @ Asked::Open) => *asked = Asked::Answered,
                    Some(Asked::Gone) => {}
                    Some(Asked::Answered) | None => return Err(twice()),
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn grant(&mut self, backend: BackendId) -> Result<(), String> {
        let holds = |stage: &Stage| matches!(stage, Stage::Granted | Stage::Serving);
        if let Some((other, _)) = self.backends.iter().find(|(_, stage)| holds(stage)) {
            return Err(format!("{backend:?} is granted the lanes while {other:?} lives"));
        }
        if self.persisted_sitter && self.persisted != Some(backend) {
            return Err(format!(
                "{backend:?} is granted the lanes, and the state does not name it"
            ));
        }
        // It may have gone meanwhile.
        if let Some(stage) = self.backends.get_mut(&backend) {
            *stage = Stage::Granted;
        }
        Ok(())
    }

    pub(super) fn check_end(&self, end: &End) -> Result<(), String> {
        match self.clients.iter().find(|(_, asked)| **asked == Asked::Open) {
            Some((client, _)) => Err(format!("{client:?} is not answered at the end ({end:?})")),
            None => Ok(()),
        }
    }

    /// What is answered before anything else can happen: all that the answer may be, the usual one first.
    pub(super) fn immediate(&self) -> Option<Vec<Event>> {
        if let Some(backend) = self.refused.first() {
            return Some(vec![Event::Gone { backend: *backend }]);
        }
        if let Some((revision, ..)) = self.writing.first() {
            let mut outcomes = vec![Event::StatePersisted { revision: *revision }];
            if self.failures < MAX_FAILURES {
                outcomes.push(Event::StateNotPersisted { revision: *revision });
            }
            return Some(outcomes);
        }
        if let Some(id) = self.left_scans.first() {
            let report = Report::Users(Ok(Vec::new()));
            return Some(vec![Event::HelperEnded { id: *id, report }]);
        }
        if self.becoming {
            // Otherwise there is nothing left to explore.
            return Some(vec![Event::NotBecome]);
        }
        (self.surveys > 0).then(|| {
            let quiet =
                Survey { served: true, size: SIZE, owner_size: Some(SIZE), ..Survey::default() };
            let busy = Survey { in_flight: 1, waiting: true, ..quiet };
            let stuck = Survey { served: false, owner_stopped: true, ..busy };
            [quiet, busy, stuck].map(Event::Surveyed).to_vec()
        })
    }

    /// Notes what an event means here.
    pub(super) fn happened(&mut self, event: &Event, core: &Core) {
        match event {
            Event::Hello { backend, takeover, .. } => {
                self.joined |= *takeover;
                self.backends.insert(*backend, Stage::Waiting);
            }
            Event::Gone { backend } => {
                self.backends.remove(backend);
                self.refused.retain(|refused| refused != backend);
            }
            Event::StartFailed { backend, .. } => {
                self.backends.remove(backend);
                self.failures += 1;
            }
            Event::Ready { backend } => {
                self.backends.insert(*backend, Stage::Serving);
            }
            Event::StatePersisted { .. } => {
                let (_, owner, sitter) = self.writing.remove(0);
                (self.persisted, self.persisted_sitter) = (owner, sitter);
            }
            Event::StateNotPersisted { .. } => {
                self.writing.remove(0);
                self.failures += 1;
            }
            Event::Surveyed(_) => self.surveys -= 1,
            Event::NotBecome => self.becoming = false,
            Event::HelperEnded { id, .. } => {
                self.helpers.remove(id);
                self.left_scans.retain(|left| left != id);
            }
            Event::SitterSaid(_) => self.sitter_said = true,
            Event::SitterGone => self.sitter_sits = false,
            Event::Order { client, .. } => {
                self.clients.insert(*client, Asked::Open);
            }
            Event::ClientGone { client } => {
                self.clients.insert(*client, Asked::Gone);
            }
            Event::Stop => self.stopped = true,
            Event::StarterGone | Event::LanesClosed => self.lanes_closed = true,
            Event::LedgerDamaged => self.damaged = true,
            Event::OwnerEnded(_) => {
                if let Some(owner) = core.ownership.owner() {
                    self.backends.remove(&owner);
                }
            }
            _ => {}
        }
    }

    /// All that may happen next.
    pub(super) fn possible(&self, core: &Core) -> Vec<Event> {
        let mut events = Vec::new();
        for (&backend, &stage) in &self.backends {
            events.extend(self.possible_of(core, backend, stage));
        }
        if !self.joined && core.device.attached {
            let backend = BackendId(1000);
            events.push(Event::Hello { backend, takeover: true, size: 2 * SIZE });
        }
        for (&id, task) in &self.helpers {
            events
                .extend(reports(task).into_iter().map(|report| Event::HelperEnded { id, report }));
        }
        for watch in core.watches() {
            let condition = watch.condition;
            let may_fail = [Condition::OwnerStopped, Condition::NoSizeChange].contains(&condition);
            let may_hold = match condition {
                Condition::OwnerGone => {
                    core.ownership.owner().is_none_or(|owner| !self.backends.contains_key(&owner))
                }
                _ => true,
            };
            if may_hold {
                events.push(Event::Seen { condition, holds: true });
            }
            if may_fail {
                events.push(Event::Seen { condition, holds: false });
            }
        }
        if self.sitter_sits {
            events.push(Event::SitterGone);
            if !self.sitter_said {
                let refused = |busy, set_up| Err(SetupRefused { busy, set_up });
                let said =
                    [Ok(()), refused(true, false), refused(true, true), refused(false, false)];
                events.extend(said.map(Event::SitterSaid));
            }
        }
        if !self.stopped {
            events.push(Event::Stop);
        }
        if !self.lanes_closed {
            events.push(if core.device.attached { Event::LanesClosed } else { Event::StarterGone });
        }
        if !self.damaged && core.device.attached && core.ownership.is_ready() {
            events.push(Event::LedgerDamaged);
        }
        if self.clients.len() < MAX_ORDERS {
            let client = ClientId(2000 + self.clients.len() as u64);
            let may_record = core.why_not_beside_replacement().is_none();
            let orders = orders().into_iter().filter(|order| may_record || *order != Order::Record);
            events.extend(orders.map(|order| Event::Order { client, order }));
        }
        for (&client, asked) in &self.clients {
            if *asked == Asked::Open {
                events.push(Event::ClientGone { client });
            }
        }
        if core.next_deadline().is_some() {
            events.push(Event::Time);
        }
        events
    }

    fn possible_of(&self, core: &Core, backend: BackendId, stage: Stage) -> Vec<Event> {
        let is_owner = core.ownership.owner() == Some(backend);
        let hello = Event::Hello { backend, takeover: false, size: SIZE };
        let grown = Event::Hello { backend, takeover: false, size: 2 * SIZE };
        let mut events = match stage {
            Stage::Starting if core.is_resizing() => vec![hello, grown],
            Stage::Starting => vec![hello],
            Stage::Granted => vec![Event::Ready { backend }],
            Stage::Waiting | Stage::Serving => Vec::new(),
        };
        if is_owner {
            let killed =
                OwnerEnd { orderly: false, clean: false, progressed: true, spare_is_old: false };
            events.push(Event::OwnerEnded(killed));
            events.push(Event::OwnerEnded(OwnerEnd { orderly: true, clean: true, ..killed }));
        } else {
            events.push(Event::Gone { backend });
            if stage == Stage::Starting && self.failures < MAX_FAILURES {
                events.push(Event::StartFailed { backend, shortage: false });
            }
        }
        events
    }

    /// What happens where all goes well, of what may.
    pub(super) fn helpful(&self, core: &Core) -> Option<Event> {
        let possible = self.possible(core);
        let is_killed = core.ownership.is_fencing() || self.lanes_ended;
        let wanted = |event: &&Event| match event {
            Event::Hello { takeover, size, .. } => {
                let wanted = if core.is_resizing() { 2 * SIZE } else { SIZE };
                !takeover && !self.lanes_ended && *size == wanted
            }
            Event::Ready { .. } => !self.lanes_ended,
            Event::HelperEnded { report, .. } => is_good(report),
            Event::Seen { condition, holds } => *holds && *condition != Condition::OwnerStopped,
            Event::SitterSaid(Ok(())) => true,
            Event::OwnerEnded(end) => is_killed && !end.orderly,
            _ => false,
        };
        // The driver first lets go of the sitter.
        let sitter = possible.iter().find(|event| **event == Event::SitterGone && self.lanes_ended);
        sitter.or_else(|| possible.iter().find(wanted)).cloned()
    }

    /// How many orders are open that do not wait for a backend however long that takes.
    pub(super) fn open_orders(&self, core: &Core) -> usize {
        let open = self.clients.iter().filter(|(_, asked)| **asked == Asked::Open);
        open.filter(|(client, _)| !core.waiting.is_for_backend(**client)).count()
    }

    pub(super) fn other_client(&self) -> ClientId {
        ClientId(3000)
    }

    pub(super) fn is_answered(&self, client: ClientId) -> bool {
        self.clients.get(&client) == Some(&Asked::Answered)
    }
}

fn is_good(report: &Report) -> bool {
    match report {
        Report::Status(status) => *status == 0,
        Report::Users(users) => users.as_ref().is_ok_and(Vec::is_empty),
        Report::Flushed(flushed) => *flushed == Flushed::Disconnected,
        Report::Resized(resized) => *resized == Resized::Done,
        Report::Program(answer) => answer.is_ok(),
    }
}

/// What a helper process may report, if it does.
fn reports(task: &HelperTask) -> Vec<Report> {
    match task {
        HelperTask::FindUsers => {
            let user = |may_pass| User { what: String::new(), ends_with: None, may_pass };
            let unknown = UsersUnknown::TimedOut(String::new());
            let found = [Ok(Vec::new()), Ok(vec![user(true)]), Ok(vec![user(false)]), Err(unknown)];
            found.map(Report::Users).to_vec()
        }
        HelperTask::FlushAndDisconnect => [
            Flushed::Disconnected,
            Flushed::NotDisconnected,
            Flushed::Busy,
            Flushed::Failed(Errno::EIO),
        ]
        .map(Report::Flushed)
        .to_vec(),
        HelperTask::Resize { .. } => {
            [Resized::Done, Resized::Needed, Resized::Failed(Errno::EIO), Resized::Unknown]
                .map(Report::Resized)
                .to_vec()
        }
        HelperTask::AskProgram { .. } => {
            vec![Report::Program(Ok(())), Report::Program(Err(String::new()))]
        }
        HelperTask::TestRead => vec![Report::Status(0), Report::Status(5)],
        _ => vec![Report::Status(0)],
    }
}

fn orders() -> Vec<Order> {
    vec![
        Order::Detach { force: false },
        Order::Detach { force: true },
        Order::Restart { program: None },
        Order::Restart { program: Some(Vec::new()) },
        Order::WaitReady,
        Order::Upgrade { program: String::new() },
        Order::Fail { kill: true, in_flight: true },
        Order::Fail { kill: false, in_flight: true },
        Order::Record,
        Order::Pause { kill: true },
        Order::Resume,
        Order::Resize { size: Some(SIZE / 2), force: true },
        Order::Resize { size: Some(SIZE / 2), force: false },
        Order::Resize { size: Some(SIZE * 2), force: false },
        Order::Resize { size: None, force: false },
    ]
}
