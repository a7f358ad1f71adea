//! The decisions of the holder: events in, commands out, and nothing else.
//!
//! There is no system call in here, no clock and no descriptor. The event loop in [`crate::io`] tells what
//! happened, with the time; it carries out the commands in their order, and what comes of each of them
//! is an event again. Whatever may block is a helper process ([`Command::StartHelper`]) with a deadline,
//! and whatever must be durable before the next step is [`Command::PersistState`], whose completion is
//! an event. So all orders in which things may happen can be enumerated, and the tests in `explore` do.
//!
//! | module | decides |
//! |---|---|
//! | [`ownership`] | which backend has the lanes |
//! | [`backends`] | what is done about it |
//! | [`attach`], [`detach`], [`take_down`], [`resize`], [`upgrade`] | the steps of one procedure each |
//! | [`fail`] | when what is in flight is answered with EIO |
//! | [`orders`] | what clients may order when, and who waits for what |
//! | [`owner_exit`] | whether an owner's end was asked for, and what follows |
//! | [`persist`] | when the state is written, and what waits for that |
//! | [`users`] | whether anything uses the device |
//! | [`view`] | what status and the event loop may know |

pub(crate) mod attach;
mod backends;
pub(crate) mod detach;
pub(crate) mod event;
#[cfg(test)]
mod explore;
pub(crate) mod fail;
#[cfg(test)]
mod fixture;
pub(crate) mod orders;
mod owner_exit;
pub(crate) mod ownership;
mod persist;
pub(crate) mod resize;
pub(crate) mod take_down;
mod timers;
pub(crate) mod upgrade;
pub(crate) mod users;
mod view;

use std::time::{Duration, Instant};

use attach::Attach;
use detach::Detach;
use fail::FailOrder;
use orders::{Orders, Waiting};
use owner_exit::OwnerExit;
use ownership::{Kind, Ownership};
use persist::Durability;
use resize::Resize;
use take_down::TakeDown;
use timers::Timers;
use upgrade::Upgrade;

pub(crate) use event::{
    BackendId, ClientId, Command, Condition, Event, HelperId, HelperTask, Note, Program, Reply,
    Report, Revision, Survey, Watch,
};
pub(crate) use orders::{Order, Refused, Wait};
pub(crate) use owner_exit::OwnerEnd;

/// What does not change while the holder lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The device is connected over netlink, and its sitter does not sit in an ioctl.
    pub(crate) netlink: bool,
    /// The operator wants this device and no other one.
    pub(crate) given: bool,
    /// It exists before it is connected.
    pub(crate) exists: bool,
    /// How long a backend may take to introduce itself.
    pub(crate) ready_timeout: Option<Duration>,
    /// How long requests may be without a backend before they are answered with EIO.
    pub(crate) loss_limit: Option<Duration>,
}

/// What the holder is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Procedure {
    Idle,
    Attach(Attach),
    Detach(Detach),
    TakeDown(TakeDown),
    Resize(Resize),
    Upgrade(Upgrade),
    /// Nothing any more: the process ends.
    Ended(End),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    NotAttached(attach::AttachError),
    /// The device is free, or its users keep it.
    Detached(take_down::Released),
    /// Another program has disconnected it, or its sitter is gone.
    Dropped,
    /// The process was told to stop, and the device cannot be detached: it stays for another holder.
    Stopped(detach::DetachError),
}

/// Why an attached device only awaits its detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The ledger is damaged, so what is in flight cannot be executed again.
    Damaged,
    /// The driver did not let go of it.
    Stuck,
}

/// What is known of the driver's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Driver {
    pub(crate) sitter: Sitter,
    /// It was told to disconnect, and said that it did.
    pub(crate) disconnected: bool,
    /// It has closed the lanes, which was not our doing.
    pub(crate) dropped: bool,
    /// `queue/io_timeout` is ours.
    pub(crate) silenced: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sitter {
    #[default]
    None,
    Sits,
    Gone,
}

/// All that the holder decides from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Core {
    config: Config,
    now: Instant,
    pub(crate) ownership: Ownership,
    procedure: Procedure,
    /// Requests may come, and failures are survived.
    attached: bool,
    failed: Option<Failed>,
    driver: Driver,
    durability: Durability,
    timers: Timers,
    orders: Orders,
    waiting: Waiting,
    fail_order: Option<FailOrder>,
    probe: Option<resize::Probe>,
    /// The backend of an attach has failed, which is the end of it.
    hopeless: bool,
    replacement: Option<Replacement>,
    owner_exit: OwnerExit,
    last_id: u64,
    out: Vec<Command>,
}

/// Another program that is to serve the device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Replacement {
    program: Program,
    /// What was started last of it.
    backend: Option<BackendId>,
}

impl Core {
    /// Of a device that is to be attached.
    pub(crate) fn new(config: Config, ownership: Ownership, now: Instant) -> Self {
        Self {
            config,
            now,
            ownership,
            procedure: Procedure::Idle,
            attached: false,
            failed: None,
            driver: Driver::default(),
            durability: Durability::default(),
            timers: Timers::default(),
            orders: Orders::default(),
            waiting: Waiting::default(),
            fail_order: None,
            probe: None,
            hopeless: false,
            replacement: None,
            owner_exit: OwnerExit::default(),
            last_id: 0,
            out: Vec::new(),
        }
    }

    /// The device is attached already. `restarts` is how often its backend was started again;
    /// `silenced`: its queue's timeout was changed.
    pub(crate) fn set_adopted(&mut self, restarts: u64, silenced: bool) {
        self.attached = true;
        self.driver = Driver { sitter: Sitter::Sits, silenced, ..Driver::default() };
        self.ownership.set_attached(restarts);
    }

    /// This backend has the lanes of an adopted device, or had them when it died.
    pub(crate) fn adopt_owner(&mut self, backend: BackendId, kind: Kind, is_paused: bool) {
        if is_paused {
            self.ownership.set_paused();
        }
        self.ownership.adopt(backend, kind);
    }

    /// Takes what happened, and says what is to be done about it, in this order.
    pub(crate) fn handle(&mut self, event: &Event, now: Instant) -> Vec<Command> {
        self.now = now;
        if matches!(self.procedure, Procedure::Ended(_)) {
            return self.refuse_late(event);
        }
        self.take(event);
        self.step(event);
        self.check_timers();
        self.check_replacement();
        self.check_waiting_for_start();
        self.begin_next();
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, event: &Event) {
        match *event {
            Event::Begin => self.begin_attach(),
            Event::Hello { backend, takeover, size } => self.hello(backend, takeover, size),
            Event::Gone { backend } => {
                self.probe_is_gone(backend);
                if self.ownership.is_eio_backend_coming(backend) {
                    self.pause_eio_backend();
                }
                self.apply(&ownership::Event::Gone { backend });
            }
            Event::StartFailed { backend, shortage } => self.start_failed(backend, shortage),
            Event::Ready { backend } => self.ready(backend),
            Event::Stable => self.apply(&ownership::Event::Stable),
            Event::OwnerEnded(end) => self.owner_ended(end),
            Event::AdoptedDead => self.adopted_dead(),
            Event::AdoptedUnwanted => self.apply(&ownership::Event::FailDone),
            Event::LedgerDamaged => self.fail_device(),
            Event::StateChanged => {
                self.persist();
            }
            Event::StatePersisted { revision } => self.state_persisted(revision),
            Event::StateNotPersisted { revision } => self.state_not_persisted(revision),
            Event::SitterGone => self.driver.sitter = Sitter::Gone,
            Event::LanesClosed => self.driver.dropped = true,
            Event::Order { client, ref order } => self.order(client, order),
            Event::ClientGone { client } => self.waiting.forget(client),
            Event::Stop => self.orders.stop = true,
            Event::Seen { condition, holds: true } => self.fail_condition_holds(condition),
            _ => {}
        }
    }

    /// Moves the procedure that is under way.
    fn step(&mut self, event: &Event) {
        let procedure = std::mem::replace(&mut self.procedure, Procedure::Idle);
        self.procedure = match procedure {
            Procedure::Attach(attach) => self.step_attach(attach, event),
            Procedure::Detach(detach) => self.step_detach(detach, event),
            Procedure::TakeDown(down) => self.step_take_down(down, event),
            Procedure::Resize(resize) => self.step_resize(resize, event),
            Procedure::Upgrade(upgrade) => self.step_upgrade(upgrade, event),
            other => other,
        };
    }

    /// Begins what was ordered, or what has become necessary, when nothing else is under way.
    fn begin_next(&mut self) {
        while self.procedure == Procedure::Idle && self.attached {
            let Some(next) = self.next_procedure() else {
                return;
            };
            self.procedure = next;
        }
    }

    fn next_procedure(&mut self) -> Option<Procedure> {
        if let Some(order) = self.orders.upgrade.take() {
            Some(self.begin_upgrade(order))
        } else if let Some(order) = self.orders.detach {
            Some(self.begin_detach(detach::Requester::Client, order.force))
        } else if let Some(order) = self.orders.resize {
            Some(self.begin_resize(order))
        } else if std::mem::take(&mut self.orders.stop) {
            Some(self.begin_detach(detach::Requester::Signal, false))
        } else if self.is_dropped() {
            Some(self.begin_take_down(take_down::Cause::Dropped))
        } else {
            None
        }
    }

    fn is_dropped(&self) -> bool {
        let sitter_gone = self.driver.sitter == Sitter::Gone && !self.config.netlink;
        self.failed.is_none() && (self.driver.dropped || sitter_gone)
    }

    /// When [`Event::Time`] is due; nothing if nothing is awaited.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let procedure = match &self.procedure {
            Procedure::Attach(attach) => attach.deadline(),
            Procedure::Detach(detach) => detach.deadline(self.now, self.eio_is_enough()),
            Procedure::TakeDown(down) => down.deadline(),
            Procedure::Resize(resize) => resize.deadline(),
            Procedure::Upgrade(upgrade) => upgrade.deadline(),
            Procedure::Idle | Procedure::Ended(_) => None,
        };
        [procedure, self.timer_deadline(), self.durability.deadline(), self.fail_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What the event loop shall look at until something else happens, as no descriptor tells of it.
    pub(crate) fn watches(&self) -> Vec<Watch> {
        let procedure = match &self.procedure {
            Procedure::Attach(attach) => attach.watch(),
            Procedure::Detach(detach) => detach.watch(self.now, self.eio_is_enough()),
            Procedure::TakeDown(down) => return down.watches(),
            Procedure::Resize(resize) => resize.watch(),
            _ => None,
        };
        procedure.into_iter().chain(self.fail_watch()).collect()
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A number for a backend that is started or has connected.
    pub(crate) fn new_backend(&mut self) -> BackendId {
        BackendId(self.next_id())
    }

    /// A number for a client that has connected.
    pub(crate) fn new_client(&mut self) -> ClientId {
        ClientId(self.next_id())
    }

    fn command(&mut self, command: Command) {
        self.out.push(command);
    }

    fn note(&mut self, note: Note) {
        self.out.push(Command::Note(note));
    }

    /// Starts a helper process; what it reports comes as [`Event::HelperEnded`].
    fn start_helper(&mut self, task: HelperTask) -> HelperId {
        let id = HelperId(self.next_id());
        self.command(Command::StartHelper { id, task });
        id
    }

    fn after(&self, pause: Duration) -> Instant {
        self.now + pause
    }

    fn is_late(&self, until: Instant) -> bool {
        self.now >= until
    }

    /// Whether a helper process has reported, or was late and is left behind.
    fn is_helper_over(&mut self, helper: HelperId, until: Instant, event: &Event) -> bool {
        match event {
            Event::HelperEnded { id, .. } if *id == helper => true,
            _ if self.is_late(until) => {
                self.command(Command::LeaveHelper { id: helper });
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
impl Core {
    /// Without what differs between states that are equal otherwise.
    fn at_rest(&self) -> Self {
        Self { last_id: 0, now: self.now, ..self.clone() }
    }
}
