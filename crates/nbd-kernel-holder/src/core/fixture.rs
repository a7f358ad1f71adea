//! A core in a state from which tests begin.

use std::time::Instant;

use super::ownership::{self, Ownership};
use super::{ClientId, Command, Config, Core, Event};
use crate::args::RestartWhen;

pub(super) const CLIENT: ClientId = ClientId(100);

/// An attached device with a backend.
pub(super) fn served() -> Core {
    let config =
        Config { netlink: false, given: true, exists: true, ready_timeout: None, loss_limit: None };
    let ownership = Ownership::new(RestartWhen::OnFailure, None, true);
    let mut core = Core::new(config, ownership, Instant::now());
    core.set_adopted(0, true);
    let backend = core.new_backend();
    core.adopt_owner(backend, ownership::Kind::Program, false);
    core
}

/// Handles an event, and the state being written wherever that is wanted.
pub(super) fn feed(core: &mut Core, event: &Event) -> Vec<Command> {
    let mut all = core.handle(event, Instant::now());
    let mut at = 0;
    while let Some(command) = all.get(at) {
        at += 1;
        if let Command::PersistState { revision } = *command {
            let event = Event::StatePersisted { revision };
            all.extend(core.handle(&event, Instant::now()));
        }
    }
    all
}
