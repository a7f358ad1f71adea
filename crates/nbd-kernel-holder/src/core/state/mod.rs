//! All that the holder decides from, grouped by what changes together, and what every decision is made
//! with: the time, commands, numbers.

mod backends;
mod clients;
mod device;
mod durability;
mod timers;

pub(super) use backends::{Backends, FailOrder, Probe, Replacement};
pub(crate) use clients::Wait;
pub(super) use clients::{Orders, Waiting};
pub(super) use device::Device;
pub(crate) use device::{Config, Failed, Sitter};
pub(super) use durability::{Durability, PendingGrant, Unsaved};
pub(super) use timers::Timers;

use std::time::{Duration, Instant};

use super::event::{BackendId, ClientId, Command, Event, HelperId, HelperTask, Note};
use super::ownership::{Kind, Ownership};
use super::procedure::Procedure;

/// All that the holder decides from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Core {
    pub(super) config: Config,
    pub(super) now: Instant,
    pub(crate) ownership: Ownership,
    pub(super) procedure: Procedure,
    pub(super) device: Device,
    pub(super) durability: Durability,
    pub(super) timers: Timers,
    pub(super) orders: Orders,
    pub(super) waiting: Waiting,
    pub(super) backends: Backends,
    last_id: u64,
    pub(super) out: Vec<Command>,
}

impl Core {
    /// Of a device that is to be attached.
    pub(crate) fn new(config: Config, ownership: Ownership, now: Instant) -> Self {
        Self {
            config,
            now,
            ownership,
            procedure: Procedure::Idle,
            device: Device::default(),
            durability: Durability::default(),
            timers: Timers::default(),
            orders: Orders::default(),
            waiting: Waiting::default(),
            backends: Backends::default(),
            last_id: 0,
            out: Vec::new(),
        }
    }

    /// The device is attached already. `restarts` is how often its backend was started again;
    /// `silenced`: its queue's timeout was changed.
    pub(crate) fn set_adopted(&mut self, restarts: u64, silenced: bool) {
        self.device =
            Device { attached: true, sitter: Sitter::Sits, silenced, ..Device::default() };
        self.ownership.set_attached(restarts);
    }

    /// This backend has the lanes of an adopted device, or had them when it died.
    pub(crate) fn adopt_owner(&mut self, backend: BackendId, kind: Kind, is_paused: bool) {
        if is_paused {
            self.ownership.set_paused();
        }
        self.ownership.adopt(backend, kind);
    }

    pub(super) fn next_id(&mut self) -> u64 {
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

    pub(super) fn command(&mut self, command: Command) {
        self.out.push(command);
    }

    pub(super) fn note(&mut self, note: Note) {
        self.out.push(Command::Note(note));
    }

    /// Starts a helper process; what it reports comes as [`Event::HelperEnded`].
    pub(super) fn start_helper(&mut self, task: HelperTask) -> HelperId {
        let id = HelperId(self.next_id());
        self.command(Command::StartHelper { id, task });
        id
    }

    pub(super) fn after(&self, pause: Duration) -> Instant {
        self.now + pause
    }

    pub(super) fn is_late(&self, until: Instant) -> bool {
        self.now >= until
    }

    /// Whether a helper process has reported, or was late and is left behind.
    pub(super) fn is_helper_over(
        &mut self,
        helper: HelperId,
        until: Instant,
        event: &Event,
    ) -> bool {
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
    pub(super) fn at_rest(&self) -> Self {
        Self { last_id: 0, now: self.now, ..self.clone() }
    }
}
