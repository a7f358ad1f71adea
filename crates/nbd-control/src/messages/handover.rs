//! What a holder hands to the program that it becomes when it is upgraded.
//!
//! One message, sent before the exec into a connection that the new program finds under a
//! descriptor number. All else it reads from where any holder would that adopts the device.

use serde::{Deserialize, Serialize};

/// The device, and how its holder was getting on with others. The descriptors are the control
/// socket, the socket for backends, and those connections that the message says are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The device's number.
    pub index: u32,
    /// The nbd-ctl that has asked for this and waits for the answer; always handed on.
    pub client: bool,
    /// The connection of the backend.
    pub backend: bool,
    /// The backend came from outside.
    pub joined: bool,
    /// Children that the holder only reaps. A backend that is a child is not among them.
    pub orphans: Vec<i32>,
}

/// What a holder of this build answers when it is asked whether it can take a device over. The
/// holder compares the answer with its own.
#[must_use]
pub fn abilities(ledger_version: u32) -> String {
    let (protocol, state) = (crate::channel::VERSION, crate::registry::State::VERSION);
    format!("takes over: protocol {protocol}, state {state}, ledger {ledger_version}")
}
