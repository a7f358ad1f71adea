//! What may be under way: each procedure an enum of its steps, with what a step needs and how long it may
//! take. What happens in a step is decided in the modules that are named like these, one storey up.

pub(super) mod attach;
pub(super) mod detach;
pub(super) mod leaving;
pub(super) mod limits;
pub(super) mod releasing;
pub(super) mod resize;
pub(super) mod take_down;
pub(super) mod upgrade;
pub(super) mod users;

pub(super) use detach::DetachOrder;
pub(super) use resize::ResizeOrder;
pub(super) use upgrade::UpgradeOrder;

use super::event::{AttachError, DetachError, Released};
use attach::Attach;
use detach::Detach;
use resize::Resize;
use take_down::TakeDown;
use upgrade::Upgrade;

/// What the holder is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Procedure {
    Idle,
    Attach(Attach),
    Detach(Detach),
    TakeDown(TakeDown),
    Resize(Resize),
    Upgrade(Upgrade),
    /// Nothing any more: the process ends.
    Ended(End),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    NotAttached(AttachError),
    /// The device is free, or its users keep it.
    Detached(Released),
    /// Another program has disconnected it, or its sitter is gone.
    Dropped,
    /// The process was told to stop, and the device cannot be detached: it stays for another holder.
    Stopped(DetachError),
}
