//! What an explanation consists of.

use nbd_control::status::RequestStatus;
use serde::Serialize;

use super::above::Above;
use super::process::Process;

/// How many requests and waiting processes are told one by one.
pub(super) const MAX_LISTED: usize = 8;

/// Why a device does not go on, if it does not.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    pub(super) device: String,
    /// The state in one word, for programs.
    pub(super) verdict: Verdict,
    /// The cause in one sentence.
    pub(super) cause: String,
    /// Further facts, a sentence each.
    pub(super) details: Vec<String>,
    /// What can be done about it.
    pub(super) ways_out: Vec<Remedy>,
    /// Processes that wait.
    pub(super) waiters: Vec<Process>,
    /// Requests that wait, oldest first.
    pub(super) requests: Vec<RequestStatus>,
    /// Requests that the block layer waits for.
    pub(super) block_layer: u64,
    /// What is stacked on the device, that on top first.
    pub(super) above: Vec<Above>,
}

/// What is the matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Nothing,
    Slow,
    Blocked,
    Stopped,
    Traced,
    Starting,
    Fencing,
    Restarting,
    NoBackend,
    Down,
    Paused,
    Failing,
    Failed,
    SitterGone,
    HolderGone,
    HolderSilent,
    Ending,
    Abandoned,
    Stale,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Remedy {
    /// A command, or what to do by hand.
    pub(super) what: String,
    /// What comes of it.
    pub(super) effect: String,
}

pub(super) fn way(what: impl Into<String>, effect: &str) -> Remedy {
    Remedy { what: what.into(), effect: effect.into() }
}
