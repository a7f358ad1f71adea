//! Why something is not done. The words for it are made at the edge.

use std::time::Duration;

use nbd_device_users::User;
use nix::errno::Errno;

/// Why an order is not carried out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    BeingDetached,
    GivenUp,
    HasFailed,
    NotAttachedYet,
    BeingAnswered,
    BeingResized,
    IsPaused,
    NotPaused,
    ReplacementUnderWay,
    AnotherReplacement,
    AnotherDetach,
    AnotherUpgrade,
    NoProgram,
    /// The backend lives and may still answer.
    BackendAlive,
    /// The backend came from outside.
    BackendJoined,
}

/// Why a backend is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is an owner, and it was not asked to go.
    Served,
    /// Another one is already waiting for the owner's death.
    Taken,
    /// There is nothing to serve any more.
    ShuttingDown,
    /// Its storage has not grown to what is wanted.
    TooSmall { size: u64 },
}

/// Why it cannot be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UsersUnknown {
    /// There is no process to look.
    NoHelper(String),
    /// Looking takes too long, and why.
    TimedOut(String),
}

/// Why a device is not attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AttachError {
    Interrupted,
    /// The join socket cannot be made, or what a backend is granted.
    NotPrepared,
    /// The program cannot be started, or has failed.
    NoBackend,
    BackendLate(Duration),
    /// Without its state on a file no other holder could take over.
    NotSaved,
    SitterNotStarted,
    DriverRefused,
    /// Something else has it.
    Taken(Vec<User>),
    DriverLate(Duration),
    GivenUpAtOnce,
    WrongSize,
    ReadFailed(i32),
    ReadLate(Duration),
}

/// Why a device is not detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DetachError {
    InUse(Vec<User>),
    UseUnknown(UsersUnknown),
    /// The kernel itself has claimed it.
    Claimed,
    /// What was not written back would be lost.
    NotWritten(Errno),
    /// Its backend does not answer.
    NotAnswered,
    /// The driver waits for an answer under its lock, so the lanes must stay open.
    Unreachable,
    /// The driver does not let go of it.
    Stuck,
}

/// Why a device is not resized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ResizeError {
    /// There is no backend that could answer, or a request has waited for so many milliseconds.
    Stalled(Option<u64>),
    /// A detach by force came.
    BeingDetached,
    /// A backend that came from outside is not asked for its size.
    Joined,
    /// The storage is smaller than that.
    TooSmall { offered: u64, wanted: u64 },
    /// The backend that was to come has failed.
    NoBackend,
    /// No backend has taken over in time.
    ProbeLate,
    /// These would lose what is beyond `size`.
    InUse { users: Vec<User>, size: u64 },
    /// It cannot be told whether it is used.
    UseUnknown(UsersUnknown),
    /// The larger size cannot be written down.
    NotSaved,
    /// An earlier change still waits in the driver.
    EarlierChange,
    /// What was in flight is not answered.
    NotAnswered,
    /// The kernel itself uses it.
    Claimed,
    /// What is on it needs more.
    Needed { size: u64 },
    /// The driver refuses.
    Driver(Errno),
    /// The driver has not done it in time, and may still do it.
    DriverLate,
    /// The kernel shows another size than was set.
    OtherSize,
}

/// Why the present holder goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpgradeError {
    /// The new program has not said that it can take over.
    CannotTakeOver(String),
    /// It has not said so in time.
    CheckLate { program: String },
    /// It cannot be run, not even for a question: an errno.
    CannotRun { program: String, errno: i32 },
    /// Something else is under way.
    Refused(Refused),
    /// A backend is about to serve the device, or a detach was ordered.
    Unsettled,
    /// The process was told to stop.
    Stopping,
    /// The sitter had what is handed on.
    NoSitter,
    /// What the new program would read cannot be written.
    NotSaved,
    /// The new program cannot be executed.
    NotBecome,
}
