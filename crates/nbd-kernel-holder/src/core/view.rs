//! What the event loop, and those who ask, may know of the core.

use std::time::{Duration, Instant};

use super::attach;
use super::event::ClientId;
use super::procedure::{End, Procedure};
use super::state::{Core, Failed, Sitter};

impl Core {
    pub(crate) fn is_attached(&self) -> bool {
        self.device.attached
    }

    /// Requests are executed.
    pub(crate) fn is_served(&self) -> bool {
        self.device.attached && self.device.failed.is_none() && self.ownership.is_ready()
    }

    /// A client, of those that may only look, is answered when something has come.
    pub(crate) fn is_awaited_by(&self, client: ClientId) -> bool {
        self.waiting.has(client)
    }

    /// The process is to end, and has not begun to.
    pub(crate) fn is_told_to_stop(&self) -> bool {
        self.orders.stop
    }

    pub(crate) fn failed(&self) -> Option<Failed> {
        self.device.failed
    }

    pub(crate) fn end(&self) -> Option<&End> {
        match &self.procedure {
            Procedure::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// The device is attached, and nothing but requests has to be dealt with.
    pub(crate) fn is_idle(&self) -> bool {
        self.procedure == Procedure::Idle && self.device.attached
    }

    /// It is being taken down.
    pub(crate) fn is_taking_down(&self) -> bool {
        matches!(self.procedure, Procedure::TakeDown(_))
    }

    /// What is left of a device that the driver has dropped is being taken down.
    pub(crate) fn is_clearing(&self) -> bool {
        matches!(&self.procedure, Procedure::TakeDown(down) if down.is_clearing())
    }

    pub(crate) fn is_replacing(&self) -> bool {
        self.backends.replacement.is_some()
    }

    pub(crate) fn is_failing_requests(&self) -> bool {
        self.backends.fail_order.is_some()
    }

    /// A backend waits for the lanes until the state that names it is written.
    pub(crate) fn is_grant_waiting(&self) -> bool {
        self.durability.pending_grant().is_some()
    }

    /// How soon the backend is started again.
    pub(crate) fn restart_due(&self) -> Option<Instant> {
        self.timers.restart
    }

    pub(crate) fn unserved_since(&self) -> Option<Instant> {
        self.timers.unserved_since
    }

    /// How long the driver may be kept from setting the device up by those who have it open.
    pub(crate) fn users_timeout(&self) -> Duration {
        // Without a given device another one is there at once.
        if self.config.given { attach::USERS_TIMEOUT } else { Duration::ZERO }
    }

    pub(crate) fn sitter(&self) -> Sitter {
        self.device.sitter
    }

    /// The driver's closing of a lane is worth knowing.
    pub(crate) fn watches_lanes(&self) -> bool {
        self.device.attached && self.device.failed.is_none() && !self.device.dropped
    }
}
