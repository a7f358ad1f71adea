//! What happens to the holder.

use super::helper::Report;
use super::id::{BackendId, ClientId, HelperId, Program, Revision};
use super::look::{Condition, Survey};

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
    /// The state that [`PersistState`](super::Command::PersistState) wanted written is.
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
    /// What [`Core::watches`](crate::core::Core::watches) wanted looked at.
    Seen { condition: Condition, holds: bool },
    /// The answer to [`Survey`](super::Command::Survey).
    Surveyed(Survey),
    /// A client orders something.
    Order { client: ClientId, order: Order },
    /// A client has closed its connection.
    ClientGone { client: ClientId },
    /// The process is told to stop.
    Stop,
    /// The program that wants the device attached has gone away.
    StarterGone,
    /// [`BecomeProgram`](super::Command::BecomeProgram) has come to nothing.
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

/// What is known of an owner's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerEnd {
    /// It may have ended because it was told to.
    pub(crate) orderly: bool,
    /// It exited with status 0.
    pub(crate) clean: bool,
    /// It had answered something.
    pub(crate) progressed: bool,
    /// The spare is of an older build than its program is now.
    pub(crate) spare_is_old: bool,
}

/// What a client orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Take the device down; `force`: whatever uses it and whatever is in flight.
    Detach { force: bool },
    /// Start the backend anew, or another program in its place.
    Restart { program: Option<Program> },
    /// Answer once there is a backend.
    WaitReady,
    /// Become this program.
    Upgrade { program: String },
    /// Answer what is in flight with EIO. `kill`: a backend that lives, and may still answer it, is
    /// killed; `in_flight`: there is something to answer.
    Fail { kill: bool, in_flight: bool },
    /// Let no backend serve; `kill`: also one that came from outside.
    Pause { kill: bool },
    /// Let backends serve again.
    Resume,
    /// Change the size; nothing for what the backend has by now.
    Resize { size: Option<u64>, force: bool },
    /// A recording was set up: let it begin.
    Record,
}
