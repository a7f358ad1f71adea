//! From an event to the module that decides about it.

use std::time::Instant;

use super::event::{Command, Event, Watch};
use super::ownership;
use super::procedure::Procedure;
use super::procedure::detach::Requester;
use super::procedure::take_down::Cause;
use super::state::{Core, Sitter};

impl Core {
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
            Event::SitterGone => self.device.sitter = Sitter::Gone,
            Event::LanesClosed => self.device.dropped = true,
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
        while self.procedure == Procedure::Idle && self.device.attached {
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
            Some(self.begin_detach(Requester::Client, order.force))
        } else if let Some(order) = self.orders.resize {
            Some(self.begin_resize(order))
        } else if std::mem::take(&mut self.orders.stop) {
            Some(self.begin_detach(Requester::Signal, false))
        } else if self.is_dropped() {
            Some(self.begin_take_down(Cause::Dropped))
        } else {
            None
        }
    }

    fn is_dropped(&self) -> bool {
        let sitter_gone = self.device.sitter == Sitter::Gone && !self.config.netlink;
        self.device.failed.is_none() && (self.device.dropped || sitter_gone)
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
}
