//! A device that is given up: its backend is killed, and the EIO backend answers every request with EIO,
//! as soon as the fence allows it, until the device is taken down.

use super::shutdown::refuse;
use super::{Action, Event, Kind, Ownership};

impl Ownership {
    pub(super) fn abandon(&mut self) -> Vec<Action> {
        self.hold.abandoned = true;
        self.hold.failing = false;
        let mut actions = self.send_away();
        let answered = self.owner.is_some_and(|it| it.kind == Kind::EioBackend && !it.dying);
        if self.owner.is_none() && self.eio_backend.is_none() {
            actions.push(Action::StartEioBackend);
        } else if !answered {
            actions.extend(self.kill_owner());
        }
        actions
    }

    /// Whether no backend is granted the lanes any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.hold.abandoned
    }

    pub(super) fn apply_abandoned(&mut self, event: &Event) -> Vec<Action> {
        match *event {
            Event::Hello { backend, .. } if self.eio_backend == Some(backend) => {
                self.hello_of_eio_backend(backend)
            }
            Event::Hello { backend, .. } => vec![refuse(backend)],
            Event::Ready { backend } => {
                if let Some(owner) = self.owner.as_mut().filter(|owner| owner.backend == backend) {
                    owner.ready = true;
                }
                Vec::new()
            }
            Event::Gone { backend } => {
                self.eio_backend.take_if(|eio_backend| *eio_backend == backend);
                Vec::new()
            }
            Event::EioBackendFailed => {
                self.eio_backend = None;
                Vec::new()
            }
            Event::OwnerDead { .. } => match self.owner.take() {
                // A EIO backend that died of itself would do so again.
                Some(owner) if owner.kind != Kind::EioBackend || owner.dying => {
                    let start = self.eio_backend.is_none().then_some(Action::StartEioBackend);
                    start.into_iter().collect()
                }
                _ => Vec::new(),
            },
            // Another attempt to detach: what has failed may work now.
            Event::Abandon => self.abandon(),
            Event::ShutDown => self.shut_down(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
