//! What happens to the holder, and what it does about it: the language between [`Core`](super::Core) and
//! the event loop.

use std::time::Duration;

use nbd_device_users::User;
use nix::errno::Errno;

use super::attach::AttachError;
use super::detach::DetachError;
use super::orders::{Order, Refused};
use super::owner_exit::OwnerEnd;
use super::ownership::Refusal;
use super::resize::ResizeError;
use super::take_down::Released;
use super::upgrade::UpgradeError;
use super::users::UsersUnknown;

/// Number of a backend, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackendId(pub(crate) u64);
/// Number of a connected nbd-ctl, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(pub(crate) u64);
/// Number of a helper process, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HelperId(pub(crate) u64);
/// Number of a state of the holder; later ones are larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Revision(pub(crate) u64);
/// A program and its arguments.
pub(crate) type Program = Vec<String>;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The device is reserved: attach it.
    Begin,
    /// A backend has introduced itself acceptably, with an export of so many bytes.
    Hello { backend: BackendId, takeover: bool, size: u64 },
    /// A backend that does not own the lanes is gone.
    Gone { backend: BackendId },
    /// A backend could not even be started; `shortage`: for want of memory, descriptors or space.
    StartFailed { backend: BackendId, shortage: bool },
    /// The owner has recovered and is serving.
    Ready { backend: BackendId },
    /// The owner has answered, or has stayed for long enough: its predecessors' failures are over.
    Stable,
    /// No thread of the owner can run any more.
    OwnerEnded(OwnerEnd),
    /// The owner of an adopted device had died.
    AdoptedDead,
    /// That of an adopted device is not to serve: it answers with EIO, or the device is paused.
    AdoptedUnwanted,
    /// The owner has found the ledger damaged.
    LedgerDamaged,
    /// Ledger and lanes for the first backend could not be made.
    LanesNotMade,
    /// Something has changed that the state tells.
    StateChanged,
    /// The state that [`Command::PersistState`] wanted written is.
    StatePersisted { revision: Revision },
    /// It is not.
    StateNotPersisted { revision: Revision },
    /// A helper process has reported.
    HelperEnded { id: HelperId, report: Report },
    /// The sitter could not be forked, or not be told to go.
    SitterNotStarted,
    /// The sitter is about to sit, or the driver has refused; `busy`: as the device is in use.
    SitterSaid(Result<(), SetupRefused>),
    /// The sitter has ended.
    SitterGone,
    /// The driver has closed a lane.
    LanesClosed,
    /// What [`Core::watches`](super::Core::watches) wanted looked at.
    Seen { condition: Condition, holds: bool },
    /// The answer to [`Command::Survey`].
    Surveyed(Survey),
    /// A client orders something.
    Order { client: ClientId, order: Order },
    /// A client has closed its connection.
    ClientGone { client: ClientId },
    /// The process is told to stop.
    Stop,
    /// The program that wants the device attached has gone away.
    StarterGone,
    /// [`Command::BecomeProgram`] has come to nothing.
    NotBecome,
    /// A deadline may have passed.
    Time,
}

/// The driver did not set the device up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetupRefused {
    pub(crate) busy: bool,
    /// Another program is setting it up, so it is not a user that keeps it busy.
    pub(crate) set_up: bool,
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

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Start a backend: this program, or the device's own. `probe`: it is asked for its present size;
    /// `examine`: another one lives.
    StartProgram { backend: BackendId, program: Option<Program>, probe: bool, examine: bool },
    /// Start the device's program as the spare.
    StartSpare { backend: BackendId },
    /// Start what answers with EIO.
    StartEioBackend { backend: BackendId },
    /// Make what it will be granted, if it is the first one.
    PrepareGrant { backend: BackendId },
    /// Give it the lanes.
    Grant { backend: BackendId },
    /// Tell it that it is not wanted, and forget it; [`Event::Gone`] follows.
    Refuse { backend: BackendId, why: Refusal },
    /// Forget it, and kill it if it is ours.
    Dismiss { backend: BackendId },
    /// Kill the process that has the lanes.
    KillOwner,
    /// Kill all that are left.
    KillBackends,
    /// This is the device's program from now on.
    SetProgram { program: Program },
    /// Write the state down; [`Event::StatePersisted`] or [`Event::StateNotPersisted`] follows.
    PersistState { revision: Revision },
    /// The export has this size from now on.
    SetSize { size: u64 },
    /// Start a helper process; [`Event::HelperEnded`] follows.
    StartHelper { id: HelperId, task: HelperTask },
    /// Kill it, and do not wait for it: it may sit in an uninterruptible call.
    LeaveHelper { id: HelperId },
    /// Open the socket at which backends join, and write down what udev should know.
    OpenJoin,
    /// No backend joins any more.
    CloseJoin,
    /// Fork it; it waits for the next command.
    StartSitter,
    /// The state names it: it may set the device up.
    LetSitterGo,
    /// It shall not go, and ends.
    DismissSitter,
    /// Nothing in the driver is its doing.
    ForgetSitter,
    /// It cannot be told otherwise.
    KillSitter,
    /// Shut them down for driver and backend.
    EndLanes,
    /// Note what is in flight if `note`, and look: [`Event::Surveyed`] follows.
    Survey { note: bool },
    /// Remember the counts for the words about the end.
    NoteTotals { given_up: usize },
    /// Remove the device's entry from the registry.
    RemoveEntry,
    /// Answer a client's order.
    Reply { client: ClientId, reply: Reply },
    /// Tell the log, and the operator who waits for an attach.
    Note(Note),
    /// `execve(2)`; back here only if that fails, with [`Event::NotBecome`].
    BecomeProgram { client: ClientId, program: String },
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
