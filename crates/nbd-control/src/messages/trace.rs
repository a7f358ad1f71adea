//! What the flight recorder tells.

use serde::{Deserialize, Serialize};

/// Requests that were executed, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Those of each lane in order, lane by lane.
    pub requests: Vec<Executed>,
    /// For each lane, what to ask for next. Nothing more is there if that is what was asked for.
    pub next: Vec<u64>,
    /// The file to which requests are written with their data, if they are.
    pub recording: Option<String>,
}

/// A request that was executed. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// The lane it came on.
    pub lane: u32,
    /// Its number on that lane since attach.
    pub number: u64,
    /// Name of the command, like `read`.
    pub command: String,
    /// Command flags.
    pub flags: u16,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u32,
    /// The cookie.
    pub cookie: u64,
    /// When a backend took it first.
    pub received_at: u64,
    /// When its last execution was begun; 0 if it was answered without one.
    pub started_at: u64,
    /// When that was over.
    pub finished_at: u64,
    /// How often its execution was begun.
    pub attempts: u32,
    /// The NBD error that it was answered with; 0 for none.
    pub error: u32,
    /// The number of the backend that executed it, the first one since attach being 1.
    pub backend: u64,
}
