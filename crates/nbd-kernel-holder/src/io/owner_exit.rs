//! The end of the backend that has the lanes: how it ended, for the core and for the log.

use std::time::{Duration, Instant};

use nbd_ledger::Inspector;

use crate::core::{BackendId, Event, OwnerEnd};
use crate::ending::Ending;
use crate::holder::Holder;
use crate::holder::outage::Subject;
use crate::holder::program::BuildId;
use crate::holder::told::OwnerEnding;

/// How often to look whether an owner has left that cannot say so.
const DEPARTURE_INTERVAL: Duration = Duration::from_secs(1);

impl Holder {
    /// The process behind a backend has ended, or no thread of it can run any more.
    pub(crate) fn backend_process_ended(&mut self, id: BackendId) {
        // What it sent before its end comes first.
        self.drain_messages(id);
        if self.core.ownership.owner() != Some(id) {
            return self.backend_gone(id);
        }
        let Some(backend) = self.processes.backends.get_mut(&id) else {
            return;
        };
        let own = backend.is_own_child();
        // Otherwise the event that tells of it is still to come.
        let Some(ending) = backend.end() else {
            return;
        };
        self.end_owner(id, ending, own);
    }

    /// The owner says that it is done with the device, and lives on. One that this holder has started
    /// for this device is of no more use, and is killed.
    pub(crate) fn owner_left(&mut self, id: BackendId) {
        self.end_owner(id, Ending::Left, false);
        // Who finds the remains of this holder must not take that process for the backend, and kill it.
        self.feed(Event::StateChanged);
    }

    /// The same of an owner that was granted the lanes by an earlier holder. It has no connection to say
    /// so, and notes it in the ledger as well.
    pub(crate) fn notice_departure(&mut self) {
        let has_left = |inspector: &Inspector| inspector.has_backend_left();
        let Some(id) = self.silent_owner() else {
            return;
        };
        // Before it has recovered, the note is its predecessor's.
        if self.has_recovered() && self.data.inspector.as_ref().is_some_and(has_left) {
            self.owner_left(id);
        }
    }

    /// An owner without a connection to this holder.
    fn silent_owner(&self) -> Option<BackendId> {
        let id = self.core.ownership.owner()?;
        let backend = self.processes.backends.get(&id)?;
        backend.channel.is_none().then_some(id)
    }

    /// When to look whether such an owner has left: nothing else tells of it.
    pub(crate) fn departure_due(&self, now: Instant) -> Option<Instant> {
        self.silent_owner().map(|_| now + DEPARTURE_INTERVAL)
    }

    fn end_owner(&mut self, id: BackendId, ending: Ending, own: bool) {
        let Some(backend) = self.processes.backends.get_mut(&id) else {
            return;
        };
        let (pid, words) = (backend.pid().unwrap_or(0), backend.last_words.take());
        // In the log its words stand before those about its end.
        let reason = self.with_last_words(id, &ending.sentence("the backend"));
        let end = OwnerEnd {
            orderly: ending.is_orderly(own),
            clean: matches!(ending, Ending::Exited(0) | Ending::Left),
            progressed: self.has_answered(),
            spare_is_old: self.is_spare_old(),
        };
        self.told.owner_ending = Some(OwnerEnding { pid, reason: words.unwrap_or(reason), ending });
        self.drop_backend(id);
        self.feed(Event::OwnerEnded(end));
    }

    /// A spare of an older build than the program is now must not be used.
    fn is_spare_old(&self) -> bool {
        let Some(id) = self.core.ownership.spare() else {
            return false;
        };
        let now = BuildId::of(&self.settings.program);
        self.processes.backends.get(&id).is_none_or(|backend| backend.build != now)
    }

    pub(crate) fn log_owner_end(&self, why: &str) {
        if let Some(OwnerEnding { pid, ending, .. }) = &self.told.owner_ending {
            self.log(&format!("backend {pid} {ending}, {why}"));
        }
    }

    pub(crate) fn log_owner_lost(&mut self) {
        let Some(OwnerEnding { pid, reason, ending }) = self.told.owner_ending.take() else {
            return;
        };
        self.log_loss(pid, &ending);
        self.told.failures.backend = reason;
        self.note_loss(ending.to_string(), ending.is_crash());
    }

    pub(crate) fn log_eio_backend_end(&mut self) {
        let Some(OwnerEnding { ending, .. }) = self.told.owner_ending.take() else {
            return;
        };
        let reason = ending.sentence("the EIO backend");
        self.log(&format!("requests are no longer answered with EIO: {reason}"));
        self.told.failures.backend = reason;
        self.skip_generation();
    }

    fn log_loss(&mut self, pid: i32, ending: &Ending) {
        let cause = ending.to_string();
        let is_new = self.told.complaints.is_new(Subject::Loss, &cause);
        if !is_new && self.told.outage.is_some() {
            return self.log_repeated(&format!("backend {pid} {cause} as well"));
        }
        let (signal, status) = match *ending {
            Ending::Killed(signal, _) => (Some(signal.as_str()), None),
            Ending::Exited(status) => (None, Some(status)),
            Ending::Left | Ending::Unknown => (None, None),
        };
        // The driver's own count: to look into the sockets takes time, and requests wait.
        let in_flight = self.device.waiting();
        let suspects = self.suspects();
        let executing = (suspects.count() > 0).then(|| suspects.to_string());
        let suspected = match (&executing, suspects.count()) {
            (Some(executing), 1) if ending.is_crash() => format!(" while executing {executing}"),
            (Some(executing), _) if ending.is_crash() => {
                format!(" while executing one of {executing}, or none")
            }
            _ => String::new(),
        };
        tracing::warn!(
            device = %self.device.name(),
            event = "backend-lost",
            pid,
            signal,
            status,
            in_flight,
            executing,
            "backend {pid} {ending}{suspected}"
        );
    }
}
