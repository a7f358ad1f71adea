//! What log, operator and clients are told.

use std::time::Duration;

use nbd_device_users::User;

use super::error::{AttachError, DetachError, Refused, ResizeError, UpgradeError};
use super::id::BackendId;

/// What the driver has made of a device that was taken down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// It is free.
    Clear,
    /// It has no connection any more, and is free when these users have closed it.
    InUse(Vec<User>),
}

/// What the log, or the operator who waits for an attach, is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// There is no program to start.
    AwaitingJoin,
    /// The attach has come to nothing, and is undone.
    NotAttached(AttachError),
    /// The process was told to stop, and does that.
    Stopping,
    /// The device can be used.
    Attached,
    /// udev has not looked at it in time.
    UdevLate,
    /// The program is started again after a pause.
    Retrying { pause: Duration },
    /// The new program has failed.
    FormerProgramAgain,
    /// The operator has set a limit.
    GaveUp,
    /// It may have failed before.
    SpareReady,
    /// Requests are answered with EIO.
    EioBackendReady,
    /// A backend serves.
    Recovered { backend: BackendId },
    /// No backend can serve it.
    DeviceFailed,
    /// Its state cannot be written.
    GrantWaits { backend: BackendId },
    /// What is in flight is to be answered with EIO.
    Failing,
    /// All that was noted is answered with EIO.
    RequestsFailed,
    /// The killed backend does not die.
    FailWithdrawn,
    /// There has been no backend for as long as the operator allows.
    Unserved,
    /// By order.
    Paused,
    /// By order.
    Resumed,
    /// The owner's end was asked for.
    OwnerEndedAsTold,
    /// The device is given up.
    OwnerEndedGivenUp,
    /// It was not.
    OwnerLost,
    /// Requests are not answered with EIO any more.
    EioBackendEnded,
    /// Written back, but the driver would not disconnect.
    NotDisconnected,
    /// It does not let go of the sitter.
    DriverSlow,
    /// It does not end by itself.
    OwnerKilledLate,
    /// Killed processes are not dead yet.
    ProcessesLate,
    /// An errno, or nothing if the kernel is slow.
    TimeoutsNotRestored { status: Option<i32> },
    /// Not all in flight was answered with EIO in time.
    Unanswered,
    /// It is gone.
    Detached(Released),
    /// The driver has dropped it.
    Dropped,
    /// The driver does not let go of it.
    Stuck,
    /// What could not be taken down after that, or after an attach that failed.
    Left(DetachError),
    /// The driver keeps it for these.
    Kept(Vec<User>),
    /// The process was told to stop, and the device stays.
    NotStopped(DetachError),
    /// A backend is asked for its size.
    ProbeStarted,
    /// The kernel shows the new size.
    Resized { size: u64, before: u64 },
    /// It keeps its size.
    NotResized(ResizeError),
    /// The present holder goes on.
    NotUpgraded(UpgradeError),
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Served { backend: BackendId },
    Paused,
    ResumedWaiting,
    AnsweredAlready,
    NothingInFlight,
    RequestsFailed,
    RecordingBegins,
    Detached(Released),
    DetachedDropped,
    Resized { size: u64, before: u64 },
    SizeAlready { size: u64 },
    Refused(Refused),
    NotDetached(DetachError),
    NotResized(ResizeError),
    NotUpgraded(UpgradeError),
    PresentBackendGoesOn,
    ReplacementLost,
    NoBackendComes,
    FormerProgramAgain,
    Retrying { pause: Duration },
    GaveUp,
    FailAborted,
    FailWithdrawn,
    DeviceFailed,
    Dropped,
}
