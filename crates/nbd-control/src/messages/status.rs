//! What a holder tells about its device. The same types are nbd-ctl's `--json` output.

use serde::{Deserialize, Serialize};

use crate::backend::ExportInfo;
use crate::latency::LatencyStatus;

/// A device and everything around it. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the device, like `nbd0`.
    pub device: String,
    /// Its path.
    pub path: String,
    /// Size, block size, flags.
    pub export: ExportInfo,
    /// Whether it can be written to.
    pub read_only: bool,
    /// `ioctl` or `netlink`.
    pub kernel_api: String,
    /// Number of lanes.
    pub lanes: u32,
    /// What becomes of requests while there is no backend: `hold` or `fail:SECONDS`.
    pub on_backend_loss: String,
    /// What the operator has ordered and the holder is doing, like `detaching`.
    pub under_way: Option<String>,
    /// The file to which backends write their requests: `nbd-ctl record`.
    pub recording: Option<String>,
    /// The holder's process.
    pub holder_pid: i32,
    /// The process that keeps copies of everything, and sits in NBD_DO_IT with ioctl.
    pub sitter_pid: i32,
    /// The process that traces it: the holder, with ioctl, so that no debugger can.
    pub sitter_tracer_pid: Option<i32>,
    /// Who serves it.
    pub backend: BackendStatus,
    /// Requests that the driver has sent and no backend has answered, oldest first.
    pub in_flight: Vec<RequestStatus>,
    /// Answered requests since attach.
    pub totals: TotalsStatus,
    /// How long they took: reads, writes, all others, flushes. Zero if its backends do not count it.
    pub latencies: Vec<LatencyStatus>,
    /// How the last backend was lost and how fast the next one was there.
    pub last_recovery: Option<RecoveryStatus>,
    /// The latest requests that were answered with EIO because they crashed their backends.
    pub poisoned: Vec<PoisonStatus>,
}

/// The backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// What it is doing.
    pub state: BackendState,
    /// More about the state, for people; may be empty.
    pub detail: String,
    /// Its process, if there is one.
    pub pid: Option<i32>,
    /// The state letter of its process in /proc, like `S` or `T`.
    pub process_state: Option<char>,
    /// The process that traces it, such as gdb.
    pub tracer_pid: Option<i32>,
    /// What it says it serves.
    pub description: String,
    /// The program that is started when it is lost; empty if backends join from outside.
    pub program: Vec<String>,
    /// How often a backend was started after the first one was ready.
    pub restarts: u64,
    /// The tries to start one that have failed, while there is none for that reason.
    #[serde(default)]
    pub retry: Option<RetryStatus>,
}

/// A backend that does not come back, and is started again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryStatus {
    /// How long ago the device was served last, or the first try failed.
    pub since_ms: u64,
    /// How many tries in a row have come to nothing.
    pub tries: u32,
    /// Why the last one did.
    pub cause: String,
    /// When the next one begins; absent while one is under way.
    pub next_ms: Option<u64>,
}

/// What the backend is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// It was started and has not introduced itself yet, or is recovering.
    Starting,
    /// It answers requests.
    Running,
    /// It is stopped: by a signal or in a debugger. Requests wait.
    Stopped,
    /// It is gone and another one is about to be started.
    Restarting,
    /// It is gone and one from outside is waited for.
    Waiting,
    /// It keeps failing, or may not be started again. Requests wait.
    Down,
    /// The operator has paused the device. Requests wait.
    Paused,
    /// There is none, and requests are answered with EIO.
    Failing,
    /// The device has failed and only awaits its detach.
    Failed,
}

/// A request in flight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestStatus {
    /// The lane it came on.
    pub lane: u32,
    /// Name of the command, like `read`.
    pub command: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// The cookie, in hexadecimal.
    pub cookie: String,
    /// Where it waits.
    pub stage: Stage,
    /// How long it has waited since it came to the lane, by a second too short if others waited already.
    pub age_ms: u64,
    /// How often a backend began to execute it.
    pub attempts: u32,
    /// How many backends crashed while they executed it.
    pub crashes: u32,
}

/// A request that was answered with EIO because it crashed its backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoisonStatus {
    /// The lane it came on.
    pub lane: u32,
    /// Name of the command, like `read`.
    pub command: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// How many backends it crashed.
    pub crashes: u32,
    /// How the last one ended, like `killed by SIGSEGV (core dumped)`.
    pub cause: String,
    /// How long ago that was.
    pub ago_ms: f64,
}

/// Where a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// In the socket: no backend has read it.
    Unread,
    /// A backend has read it, and not begun with it.
    Queued,
    /// A backend is executing it.
    Executing,
}

/// Answered requests since attach, errors included, and bytes moved without error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct TotalsStatus {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub trims: u64,
    pub others: u64,
    pub errors: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// The last time a backend was lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// How it ended, like `killed by SIGKILL`.
    pub cause: String,
    /// How long ago.
    pub ago_ms: f64,
    /// From the loss until the successor had recovered; absent while there is none.
    pub ready_ms: Option<f64>,
    /// From the loss until the successor's first reply; absent before it.
    pub first_answer_ms: Option<f64>,
    /// Requests that the successor executed again.
    pub replayed: Option<u32>,
}
