//! Who may serve the lanes: a state machine without any system call in it.
//!
//! A *backend* is a connection of a process that serves or wants to: the program that the holder
//! started, or one that joined. At most one backend owns the lanes. Another is granted them only
//! after the owner is dead; that is the fence.
//!
//! A *spare* is a program that was started while the owner lives, has introduced itself, and
//! waits: when the owner dies, nothing has to be started first.
//!
//! The *EIO backend* is a program of ours that executes nothing: it answers every request with EIO. It
//! is granted the lanes like any other and under the same fence; see [`pause`].

mod abandon;
mod arrival;
mod event;
mod pause;
mod retry;
mod shutdown;
mod state;
mod succession;
#[cfg(test)]
mod tests;

use super::event::{BackendId, Refusal};
pub(crate) use event::{Action, Event, NotStarted};
pub(crate) use retry::LONGEST_PAUSE;
pub(crate) use state::{Kind, Ownership, Phase};
use state::{Owner, Purpose};

impl Ownership {
    /// Takes an event and says what to do.
    pub(crate) fn apply(&mut self, event: &Event) -> Vec<Action> {
        if self.is_shutting_down() {
            return self.apply_shutdown(event);
        }
        if self.is_abandoned() {
            return self.apply_abandoned(event);
        }
        match *event {
            Event::Hello { backend, takeover } => self.hello(backend, takeover),
            Event::Gone { backend } => self.gone(backend),
            Event::StartFailed { shortage } => self.fail(shortage),
            Event::Stable => {
                self.forget_failures();
                Vec::new()
            }
            Event::Ready { backend } => {
                if let Some(owner) = self.owner.as_mut().filter(|owner| owner.backend == backend) {
                    owner.ready = true;
                    self.failures.spare = 0;
                }
                Vec::new()
            }
            Event::OwnerDead { clean, progressed } => self.owner_dead(clean, progressed),
            Event::Due => {
                self.due = false;
                if !self.has_backend() && self.starting.is_none() {
                    vec![Action::Start]
                } else {
                    Vec::new()
                }
            }
            Event::Restart => self.restart(),
            Event::Pause => self.pause(),
            Event::Resume => self.resume(),
            Event::Fail => self.fail_in_flight(),
            Event::FailDone => self.fail_done(),
            Event::FailWithdrawn => self.withdraw_fail(),
            Event::Unserved if self.is_unserved() => vec![Action::StartEioBackend],
            Event::Unserved => Vec::new(),
            Event::EioBackendFailed => self.lose_eio_backend(),
            Event::Abandon => self.abandon(),
            Event::ShutDown => self.shut_down(),
        }
    }
}
