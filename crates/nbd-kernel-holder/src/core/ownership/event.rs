//! What happens to backends, and what to do about it.

use std::time::Duration;

use crate::core::event::{BackendId, Refusal};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A backend has introduced itself acceptably.
    Hello { backend: BackendId, takeover: bool },
    /// A backend that does not own the lanes is gone.
    Gone { backend: BackendId },
    /// The program could not even be started; `shortage`: for want of memory, descriptors or space.
    StartFailed { shortage: bool },
    /// The owner has answered, or has stayed for long enough: its predecessors' failures are over.
    Stable,
    /// The owner has recovered and is serving.
    Ready { backend: BackendId },
    /// No thread of the owner can run any more.
    OwnerDead { clean: bool, progressed: bool },
    /// The time of [`Action::StartAfter`] has come.
    Due,
    /// The operator wants a new backend, and replaces a living one.
    Restart,
    /// The operator wants no backend to have the lanes.
    Pause,
    /// And now one again.
    Resume,
    /// What is in flight is to be answered with EIO, at the cost of an owner that lives.
    Fail,
    /// That is done.
    FailDone,
    /// The owner does not die, so nothing is answered for it.
    FailWithdrawn,
    /// Requests have waited for a backend for as long as they are to.
    Unserved,
    /// The EIO backend could not even be started.
    EioBackendFailed,
    /// The device is given up: all requests are answered with EIO until it is taken down.
    Abandon,
    /// The device is being taken down.
    ShutDown,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the program; then call [`started`](super::Ownership::started).
    Start,
    /// Send [`Event::Due`] after a while.
    StartAfter(Duration),
    /// Give the lanes to this backend.
    Grant(BackendId),
    /// Tell this backend that it is not wanted, and forget it.
    Refuse(BackendId, Refusal),
    /// Kill the owner.
    KillOwner,
    /// Kill this program: it is no longer needed.
    Dismiss(BackendId),
    /// Too many failures, or none is allowed: wait for the operator.
    GiveUp,
    /// The owner keeps the lanes, as its replacement failed.
    ReplacementFailed,
    /// Start the EIO backend; then call [`started_eio_backend`](super::Ownership::started_eio_backend).
    StartEioBackend,
    /// What is in flight was not answered, as the EIO backend came to nothing.
    FailAborted,
}

/// What a backend was to be that could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotStarted {
    Program,
    Spare,
    EioBackend,
    /// It is not wanted any more.
    Unknown,
}
