//! What nbd-ctl asks of a holder.

use serde::{Deserialize, Serialize};

use crate::status::Status;
use crate::trace::Trace;

/// A request of nbd-ctl's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Tell everything.
    Status,
    /// Disconnect the device and exit.
    Detach {
        /// Fail what is in flight, also while the device is mounted or open.
        force: bool,
    },
    /// Kill the backend and start it anew.
    Restart,
    /// Let another program take over from a live backend.
    Replace {
        /// The new program, or the present one's newer build.
        program: Option<Vec<String>>,
    },
    /// Answer once a backend serves the device.
    WaitReady,
    /// Change the backend's [settings](crate::settings), all of these or none, and tell them.
    Set {
        /// `NAME=VALUE` each; without any, the settings are only told.
        assignments: Vec<String>,
    },
    /// Answer the requests that wait with EIO, and keep the device.
    Fail {
        /// Kill a backend that is alive: no other process may answer its requests.
        kill: bool,
    },
    /// Grant the lanes to no backend until the device is resumed: end the owner, and wait for its end.
    Pause {
        /// Also one that joined from outside, which the holder cannot start again.
        kill: bool,
    },
    /// Serve a paused device again.
    Resume,
    /// Tell which requests were executed.
    Trace {
        /// For each lane the first number that is wanted; a lane that is not named begins at 0.
        from: Vec<u64>,
    },
    /// Give the device another size while it is in use.
    Resize {
        /// In bytes; nothing for the size that its backend has by now.
        size: Option<u64>,
        /// Make it smaller although it is in use, or something on it needs the space.
        force: bool,
    },
    /// Have backends write their requests to the file that comes along, from their next life on,
    /// which begins at once if it can.
    Record {
        /// Its absolute path.
        path: String,
    },
    /// Let them write to it no more.
    EndRecording,
    /// Become another build of the holder, and answer as that.
    Upgrade {
        /// Its absolute path.
        program: String,
    },
}

impl Request {
    /// Whether nothing is different after it, so that onlookers may ask it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Status | Self::WaitReady | Self::Trace { .. } => true,
            Self::Set { assignments } => assignments.is_empty(),
            _ => false,
        }
    }
}

/// A holder's answer. A request gets exactly one, but `Notice` may come before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Trace`].
    Trace(Box<Trace>),
    /// It is done.
    Done {
        /// What happened, in a sentence; may be empty.
        text: String,
    },
    /// It was not done.
    Failed(Failure),
    /// Something the operator should know meanwhile.
    Notice {
        /// A sentence.
        text: String,
    },
    /// To [`Request::Set`]: name and value of every setting, as they are now.
    Settings(Vec<(String, String)>),
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind, for exit codes.
    pub kind: FailureKind,
    /// The object, the cause and the way out.
    pub text: String,
}

/// Kinds of failure that scripts may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Anything else.
    Other,
    /// A wrong argument.
    Usage,
    /// No such device, or nothing attached to it.
    NoDevice,
    /// The device is in use.
    Busy,
    /// It took too long.
    TimedOut,
    /// Data could not be written.
    DataLost,
}

impl FailureKind {
    /// The exit status of a program that fails so. Documented in nbd-ctl's help.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::NoDevice => 3,
            Self::Busy => 4,
            Self::TimedOut => 5,
            Self::DataLost => 6,
        }
    }
}

impl Failure {
    /// Makes one.
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// What a holder tells the program that started it, until the device is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Something the operator should know meanwhile.
    Notice {
        /// A sentence.
        text: String,
    },
    /// The device can be used.
    Ready {
        /// Its path, like `/dev/nbd0`.
        path: String,
    },
    /// It came to nothing, and nothing is left behind.
    Failed(Failure),
}
