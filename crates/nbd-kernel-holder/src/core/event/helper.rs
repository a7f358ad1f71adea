//! What helper processes are for, and what they report.

use std::time::Duration;

use nbd_device_users::User;
use nix::errno::Errno;

use super::error::UsersUnknown;

/// What a helper process is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HelperTask {
    /// Finds out what uses the device: [`Report::Users`].
    FindUsers,
    /// Has udev stop watching the device, or watch it again, and waits until it has.
    TellUdev { leaving: bool },
    /// Waits until udev has dealt with all events.
    SettleUdev { limit: Duration },
    /// Writes back and disconnects: [`Report::Flushed`].
    FlushAndDisconnect,
    /// Disconnects without asking.
    Disconnect,
    /// Takes the driver's lock and gives it back: whether that returns is the answer.
    TryLock,
    /// Stops the driver's complaints about requests that wait.
    SilenceTimeouts,
    /// Puts back what the last one has changed.
    RestoreTimeouts,
    /// Tells how the kernel's limits differ from what the export offers.
    CompareLimits,
    /// Reads the first block.
    TestRead,
    /// Tells the driver a size: [`Report::Resized`]. With `guard` only if nothing uses the device or needs
    /// what is beyond.
    Resize { size: u64, guard: bool },
    /// Asks a program whether it could take over: [`Report::Program`].
    AskProgram { program: String },
}

/// What a helper process reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Zero, or an errno.
    Status(i32),
    Users(Result<Vec<User>, UsersUnknown>),
    Flushed(Flushed),
    Resized(Resized),
    /// Whether a program can take over, or why not.
    Program(Result<(), String>),
}

/// What [`HelperTask::FlushAndDisconnect`] came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// All is written, the driver has been told to disconnect.
    Disconnected,
    /// Something has it open exclusively: a mount, swap, device mapper.
    Busy,
    /// Data could not be written.
    Failed(Errno),
    /// Written, but the driver would not disconnect.
    NotDisconnected,
}

/// What [`HelperTask::Resize`] came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resized {
    /// The driver has the new size.
    Done,
    /// Something has it open exclusively.
    Busy,
    /// A file system or a partition needs more than that.
    Needed,
    /// Something else.
    Failed(Errno),
    /// The helper process was killed: the driver has the new size or the old one.
    Unknown,
}
