//! What clients may order when, and who waits for what.

use super::event::{ClientId, Command, Event, Note, Order, Program, Refused, Reply};
use super::ownership;
use super::procedure::Procedure;
use super::procedure::detach::DetachOrder;
use super::procedure::resize::ResizeOrder;
use super::procedure::upgrade::UpgradeOrder;
use super::state::{Core, Replacement, Wait};

impl Core {
    /// Why no order can be carried out now.
    pub(crate) fn why_not_now(&self) -> Option<Refused> {
        if self.device.failed.is_some() && self.device.attached {
            Some(Refused::HasFailed)
        } else if self.ownership.is_shutting_down() {
            Some(Refused::BeingDetached)
        } else if self.ownership.is_abandoned() {
            Some(Refused::GivenUp)
        } else if !self.device.attached {
            Some(Refused::NotAttachedYet)
        } else if self.backends.fail_order.is_some() {
            Some(Refused::BeingAnswered)
        } else if self.is_resizing() {
            Some(Refused::BeingResized)
        } else {
            None
        }
    }

    /// Why no backend can be started now.
    fn why_no_start(&self) -> Option<Refused> {
        self.why_not_now().or_else(|| self.ownership.is_paused().then_some(Refused::IsPaused))
    }

    /// The same for what a replacement that is under way would disturb.
    pub(crate) fn why_not_beside_replacement(&self) -> Option<Refused> {
        let replacing = self.backends.replacement.is_some().then_some(Refused::ReplacementUnderWay);
        self.why_not_now().or(replacing)
    }

    /// Why the size cannot be changed now.
    pub(crate) fn why_no_resize(&self) -> Option<Refused> {
        let detaching = self.orders.detach.is_some().then_some(Refused::BeingDetached);
        let replacing = self.backends.replacement.is_some().then_some(Refused::ReplacementUnderWay);
        self.why_no_start().or(replacing).or(detaching)
    }

    pub(crate) fn is_resizing(&self) -> bool {
        self.orders.resize.is_some()
    }

    /// A detach by force was ordered.
    pub(crate) fn is_forced(&self) -> bool {
        self.orders.detach.is_some_and(|order| order.force)
    }

    /// A detach was ordered, and whether it is by force.
    pub(crate) fn detach_ordered(&self) -> Option<bool> {
        self.orders.detach.map(|order| order.force)
    }

    pub(super) fn reply(&mut self, client: ClientId, reply: Reply) {
        self.command(Command::Reply { client, reply });
    }

    fn refuse(&mut self, client: ClientId, why: Refused) {
        self.reply(client, Reply::Refused(why));
    }

    /// The client is answered when that has come. It waits for one thing at a time.
    fn await_for(&mut self, client: ClientId, wait: Wait) {
        self.waiting.forget(client);
        self.waiting.0.push((client, wait));
    }

    /// Tells all that wait for one of these how it ended.
    pub(super) fn reply_waiting(&mut self, waits: &[Wait], reply: &Reply) {
        let all = std::mem::take(&mut self.waiting.0);
        let (done, left) = all.into_iter().partition(|(_, wait)| waits.contains(wait));
        self.waiting.0 = left;
        let done: Vec<(ClientId, Wait)> = done;
        for (client, _) in done {
            self.reply(client, reply.clone());
        }
    }

    /// Nothing that is waited for will come any more.
    pub(super) fn reply_all_waiting(&mut self, reply: &Reply) {
        let all = [Wait::Start, Wait::Backend, Wait::Pause, Wait::Fail];
        self.reply_waiting(&all, reply);
        if let Some(order) = self.orders.upgrade.take() {
            self.reply(order.client, reply.clone());
        }
        if let Some(order) = self.orders.resize.take() {
            self.reply(order.client, reply.clone());
        }
    }

    /// There is nothing left that could be ordered.
    pub(super) fn refuse_late(&mut self, event: &Event) -> Vec<Command> {
        if let Event::Order { client, .. } = *event {
            self.refuse(client, Refused::BeingDetached);
        }
        std::mem::take(&mut self.out)
    }

    pub(super) fn order(&mut self, client: ClientId, order: &Order) {
        match order {
            Order::Detach { force } => self.order_detach(client, *force),
            Order::Restart { program } => self.order_restart(client, program.clone()),
            Order::WaitReady if self.device.failed.is_some() => {
                self.refuse(client, Refused::HasFailed);
            }
            Order::WaitReady => match self.ownership.owner() {
                Some(backend) if self.ownership.is_ready() && self.device.attached => {
                    self.reply(client, Reply::Served { backend });
                }
                _ => self.await_for(client, Wait::Backend),
            },
            Order::Upgrade { program } => self.order_upgrade(client, program.clone()),
            Order::Fail { kill, in_flight } => self.order_fail(client, *kill, *in_flight),
            Order::Pause { kill } => self.order_pause(client, *kill),
            Order::Resume => self.order_resume(client),
            Order::Resize { size, force } => self.order_resize(client, *size, *force),
            Order::Record => self.order_record(client),
        }
    }

    /// One that forces overrides one that does not.
    fn order_detach(&mut self, client: ClientId, force: bool) {
        if let Some(other) = self.orders.detach.filter(|other| other.client != client) {
            if other.force || !force {
                return self.refuse(client, Refused::AnotherDetach);
            }
            self.refuse(other.client, Refused::AnotherDetach);
        }
        self.orders.detach = Some(DetachOrder { client, force });
    }

    fn order_upgrade(&mut self, client: ClientId, program: String) {
        let under_way = matches!(self.procedure, Procedure::Upgrade(_));
        match under_way || self.orders.upgrade.is_some() {
            true => self.refuse(client, Refused::AnotherUpgrade),
            false => self.orders.upgrade = Some(UpgradeOrder { client, program }),
        }
    }

    fn order_restart(&mut self, client: ClientId, program: Option<Program>) {
        let refused = if let Some(why) = self.why_no_start() {
            Some(why)
        } else if program.is_none() && !self.ownership.has_program() {
            Some(Refused::NoProgram)
        } else {
            self.backends.replacement.is_some().then_some(Refused::AnotherReplacement)
        };
        if let Some(why) = refused {
            return self.refuse(client, why);
        }
        self.backends.replacement = program.map(|program| Replacement { program, backend: None });
        self.restart_for(client);
    }

    fn restart_for(&mut self, client: ClientId) {
        self.await_for(client, Wait::Start);
        self.timers.restart = None;
        self.apply(&ownership::Event::Restart);
    }

    fn order_record(&mut self, client: ClientId) {
        self.persist();
        let joins = self.ownership.has_joined() || !self.ownership.has_program();
        match joins || self.ownership.is_paused() {
            true => self.reply(client, Reply::RecordingBegins),
            false => self.restart_for(client),
        }
    }

    /// The backend is killed and not stopped: a stopped one could be let go by anything, and might
    /// be in the middle of a write.
    fn order_pause(&mut self, client: ClientId, kill: bool) {
        let joined = !kill && self.ownership.has_joined();
        let joined = joined.then_some(Refused::BackendJoined);
        if let Some(why) = self.why_not_beside_replacement().or(joined) {
            return self.refuse(client, why);
        }
        self.await_for(client, Wait::Pause);
        self.timers.restart = None;
        let actions = self.ownership.apply(&ownership::Event::Pause);
        // First written down: a holder that adopts the device must not start a backend.
        self.persist();
        self.note(Note::Paused);
        self.perform(&actions);
        self.complete_pause();
    }

    /// Tells those who wait for it that no backend serves the device any more.
    pub(super) fn complete_pause(&mut self) {
        if self.ownership.is_paused() && self.ownership.owner().is_none() {
            self.reply_waiting(&[Wait::Pause], &Reply::Paused);
        }
    }

    fn order_resume(&mut self, client: ClientId) {
        let not_paused = (!self.ownership.is_paused()).then_some(Refused::NotPaused);
        if let Some(why) = self.why_not_now().or(not_paused) {
            return self.refuse(client, why);
        }
        self.reply_waiting(&[Wait::Pause], &Reply::Refused(Refused::NotPaused));
        self.await_for(client, Wait::Start);
        // From now on it counts how long there is none.
        self.timers.unserved_since = Some(self.now);
        let actions = self.ownership.apply(&ownership::Event::Resume);
        self.persist();
        self.note(Note::Resumed);
        let comes = !actions.is_empty() || self.ownership.owner().is_some();
        self.perform(&actions);
        if !comes {
            self.reply_waiting(&[Wait::Start], &Reply::ResumedWaiting);
        }
    }

    fn order_fail(&mut self, client: ClientId, kill: bool, in_flight: bool) {
        let alive = !kill && self.ownership.has_backend() && !self.ownership.is_fencing();
        let alive = alive.then_some(Refused::BackendAlive);
        if let Some(why) = self.why_not_beside_replacement().or(alive) {
            return self.refuse(client, why);
        }
        let owner = self.ownership.owner();
        let is_covered = owner.is_some_and(|it| self.ownership.is_eio_backend(it))
            && !self.ownership.is_fencing();
        if is_covered {
            return self.reply(client, Reply::AnsweredAlready);
        }
        if !in_flight {
            return self.reply(client, Reply::NothingInFlight);
        }
        self.await_for(client, Wait::Fail);
        self.command(Command::Survey { note: true });
        self.begin_fail();
        self.note(Note::Failing);
        self.apply(&ownership::Event::Fail);
    }

    fn order_resize(&mut self, client: ClientId, size: Option<u64>, force: bool) {
        match self.why_no_resize() {
            Some(why) => self.refuse(client, why),
            None => self.orders.resize = Some(ResizeOrder { client, size, force }),
        }
    }
}
