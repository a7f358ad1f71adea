//! Pause and resume: the operator wants nobody to serve the device for a while.

use nbd_control::control::{Failure, FailureKind, Response};

use crate::control::Waits;
use crate::holder::Holder;
use crate::supervisor::Event;

impl Holder {
    /// Why no order can be carried out now.
    pub(crate) fn not_now(&self) -> Option<String> {
        let name = self.device.name();
        if self.supervisor.is_parting() {
            Some(format!("{name} is being detached"))
        } else if self.supervisor.is_abandoned() {
            Some(format!("{name} is given up: `nbd-ctl detach --force {name}` again"))
        } else if self.failed.is_some() {
            Some(format!("{name} has failed: detach it"))
        } else if !self.attached {
            Some(format!("{name} is not attached yet"))
        } else if self.failing.is_some() {
            Some(format!("{name}: what is in flight is just being answered with EIO"))
        } else if self.pending_resize.is_some() {
            Some(format!("{name} is just being resized"))
        } else {
            None
        }
    }

    /// Why no backend can be started now.
    pub(crate) fn ordered(&self) -> Option<String> {
        let name = self.device.name();
        let paused = || format!("{name} is paused: `nbd-ctl resume {name}` first");
        self.not_now().or_else(|| self.supervisor.is_paused().then(paused))
    }

    pub(crate) fn replacement_under_way(&self) -> Option<String> {
        let name = self.device.name();
        self.replacing.as_ref().map(|_| format!("{name}: a replacement is under way"))
    }

    /// The backend is killed and not stopped: a stopped one could be let go by anybody, and might
    /// be in the middle of a write.
    pub(crate) fn order_pause(&mut self, id: u64, kill: bool) {
        let name = self.device.name();
        let joined = || {
            self.supervisor.has_joined().then(|| {
                format!(
                    "{name}: its backend has joined from outside, so nobody starts it again after \
                     the pause: end it yourself, or use `nbd-ctl pause --kill {name}`"
                )
            })
        };
        let refused = self.not_now().or_else(|| self.replacement_under_way());
        let refused = refused.or_else(|| (!kill).then(joined).flatten());
        if let Some(text) = refused {
            let failure = Failure::new(FailureKind::Busy, text);
            return self.answer(id, &Response::Failed(failure));
        }
        self.await_for(id, Waits::Pause);
        self.due = None;
        let actions = self.supervisor.apply(&Event::Pause);
        // First written down: a holder that adopts the device must not start a backend.
        self.save_state();
        tracing::info!(device = %self.device.name(), event = "paused", "paused");
        self.perform(&actions);
        self.settle_pause();
    }

    /// Tells those who wait for it that nobody serves the device any more.
    pub(crate) fn settle_pause(&mut self) {
        if self.supervisor.is_paused() && self.supervisor.owner().is_none() {
            let name = self.device.name();
            let text = format!("{name} is paused: requests wait until `nbd-ctl resume {name}`");
            self.answer_waiters(Waits::Pause, &Ok(text));
        }
    }

    pub(crate) fn order_resume(&mut self, id: u64) {
        let name = self.device.name();
        let not_paused = || (!self.supervisor.is_paused()).then(|| format!("{name} is not paused"));
        if let Some(text) = self.not_now().or_else(not_paused) {
            let failure = Failure::new(FailureKind::Busy, text);
            return self.answer(id, &Response::Failed(failure));
        }
        self.await_for(id, Waits::Start);
        // From now on it counts how long there is none.
        self.unserved_since = Some(std::time::Instant::now());
        let actions = self.supervisor.apply(&Event::Resume);
        self.save_state();
        tracing::info!(device = %self.device.name(), event = "resumed", "resumed");
        let comes = !actions.is_empty() || self.supervisor.owner().is_some();
        self.perform(&actions);
        if !comes {
            let text = format!(
                "{name} is resumed; requests wait for a backend to join: `nbd-serve --join {name} SPEC`"
            );
            self.answer_waiters(Waits::Start, &Ok(text));
        }
    }
}
