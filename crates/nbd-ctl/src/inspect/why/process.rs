//! A process, as it is explained.

use serde::Serialize;

/// A process, by its most telling thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) name: String,
    /// The state letter: D if any thread is in uninterruptible sleep, else the main thread's.
    pub(crate) state: char,
    /// Who traces it.
    pub(crate) tracer: Option<Tracer>,
    /// The kernel functions that the thread is in, the innermost first; empty unless root looks.
    pub(crate) stack: Vec<String>,
    /// The one in which it sleeps. Some kernels tell a wrong one, so only what its stack confirms.
    pub(crate) wchan: Option<String>,
    /// What it does there, in words.
    pub(crate) doing: Option<&'static str>,
}

/// A process that traces another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Tracer {
    pub(crate) pid: i32,
    pub(crate) name: String,
}
