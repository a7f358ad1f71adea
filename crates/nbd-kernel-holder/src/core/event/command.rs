//! What the holder does about it.

use super::error::Refusal;
use super::helper::HelperTask;
use super::id::{BackendId, ClientId, HelperId, Program, Revision};
use super::told::{Note, Reply};

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
    /// Tell it that it is not wanted, and forget it; [`Gone`](super::Event::Gone) follows.
    Refuse { backend: BackendId, why: Refusal },
    /// Forget it, and kill it if it is ours.
    Dismiss { backend: BackendId },
    /// Kill the process that has the lanes.
    KillOwner,
    /// Kill all that are left.
    KillBackends,
    /// This is the device's program from now on.
    SetProgram { program: Program },
    /// Write the state down; [`StatePersisted`](super::Event::StatePersisted) or [`StateNotPersisted`](super::Event::StateNotPersisted) follows.
    PersistState { revision: Revision },
    /// The export has this size from now on.
    SetSize { size: u64 },
    /// Start a helper process; [`HelperEnded`](super::Event::HelperEnded) follows.
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
    /// Note what is in flight if `note`, and look: [`Surveyed`](super::Event::Surveyed) follows.
    Survey { note: bool },
    /// Remember the counts for the words about the end.
    NoteTotals { given_up: usize },
    /// Remove the device's entry from the registry.
    RemoveEntry,
    /// Answer a client's order.
    Reply { client: ClientId, reply: Reply },
    /// Tell the log, and the operator who waits for an attach.
    Note(Note),
    /// `execve(2)`; back here only if that fails, with [`NotBecome`](super::Event::NotBecome).
    BecomeProgram { client: ClientId, program: String },
}
