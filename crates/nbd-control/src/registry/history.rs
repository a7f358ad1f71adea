//! What an operator may still ask about a device when the holder that saw it is gone.

use serde::{Deserialize, Serialize};

use crate::status::PoisonStatus;

/// What was met with, by whichever holder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The last time that a backend was lost.
    #[serde(default)]
    pub loss: Option<Loss>,
    /// The latest requests that were given up, oldest first.
    #[serde(default)]
    pub poisoned: Vec<Poisoned>,
}

/// The end of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// How it ended, like `killed by SIGKILL`.
    pub cause: String,
    /// By a fault of its own.
    pub crashed: bool,
    /// When, on the ledger's clock: `CLOCK_MONOTONIC`, in nanoseconds.
    pub at: u64,
    /// The ledger's generation then; a successor raises it.
    pub generation: u64,
    /// How many requests its successor executed again, once there is one.
    pub replayed: Option<u32>,
}

/// A request that was given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Poisoned {
    /// When, like [`Loss::at`].
    pub at: u64,
    /// Which, and why; the holder fills in how long ago when it answers a status.
    pub request: PoisonStatus,
}
