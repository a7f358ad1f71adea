//! What happens to the holder, and what it does about it: the language between [`Core`](super::Core) and
//! the event loop.

mod command;
mod error;
mod happening;
mod helper;
mod id;
mod look;
mod told;

pub(crate) use command::Command;
pub(crate) use error::{
    AttachError, DetachError, Refusal, Refused, ResizeError, UpgradeError, UsersUnknown,
};
pub(crate) use happening::{Event, Order, OwnerEnd, SetupRefused};
pub(crate) use helper::{Flushed, HelperTask, Report, Resized};
pub(crate) use id::{BackendId, ClientId, HelperId, Program, Revision};
pub(crate) use look::{Condition, Survey, Watch};
pub(crate) use told::{Note, Released, Reply};
