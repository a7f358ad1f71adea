//! What clients have ordered, and what they wait for.

use crate::core::event::ClientId;
use crate::core::procedure::{DetachOrder, ResizeOrder, UpgradeOrder};

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A backend, however long that takes.
    Backend,
    /// The backend that it has ordered, or word that it failed.
    Start,
    /// The end of the backend.
    Pause,
    /// The answers to what is in flight.
    Fail,
}

/// Clients that are answered when something has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting(pub(crate) Vec<(ClientId, Wait)>);

impl Waiting {
    pub(crate) fn forget(&mut self, client: ClientId) {
        self.0.retain(|(waiting, _)| *waiting != client);
    }

    pub(crate) fn has(&self, client: ClientId) -> bool {
        self.0.iter().any(|(waiting, _)| *waiting == client)
    }
}

#[cfg(test)]
impl Waiting {
    /// Whether a client waits for a backend, however long that takes.
    pub(crate) fn is_for_backend(&self, client: ClientId) -> bool {
        self.0.contains(&(client, Wait::Backend))
    }
}

/// Orders that are carried out one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    pub(crate) detach: Option<DetachOrder>,
    pub(crate) upgrade: Option<UpgradeOrder>,
    pub(crate) resize: Option<ResizeOrder>,
    pub(crate) stop: bool,
}
