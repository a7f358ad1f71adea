//! What the event loop is asked to look at, as no descriptor tells of it.

use std::time::Duration;

/// What no descriptor tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Condition {
    /// The requests are answered that the last survey has noted.
    NotedAnswered,
    /// That, and nothing waits.
    NotedAnsweredAndQuiet,
    /// The block layer waits for nothing.
    Quiet,
    /// The driver is not changing the device's size.
    NoSizeChange,
    /// The device is set up and has the export's size.
    Connected,
    /// It shows this size.
    SizeIs(u64),
    /// Nothing of a connection is left.
    Clear,
    /// A killed sitter has left its wait.
    SitterParked,
    /// The owner is gone.
    OwnerGone,
    /// The owner is stopped.
    OwnerStopped,
    /// All processes that were killed are dead.
    NoProcesses,
}

/// A condition, and how often to look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) condition: Condition,
    pub(crate) interval: Duration,
}

/// How the device is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Requests that were sent and not answered.
    pub(crate) in_flight: usize,
    /// The block layer waits for requests.
    pub(crate) waiting: bool,
    /// The driver is changing the device's size.
    pub(crate) size_change: bool,
    /// There is a backend that can answer.
    pub(crate) served: bool,
    /// The age of the oldest request, in milliseconds.
    pub(crate) oldest_ms: u64,
    /// What the kernel shows, in bytes.
    pub(crate) size: u64,
    /// What the state says, in bytes.
    pub(crate) written_size: u64,
    pub(crate) owner_stopped: bool,
    /// What the owner's export has, in bytes.
    pub(crate) owner_size: Option<u64>,
}
