//! The decisions of the holder: events in, commands out, and nothing else.
//!
//! There is no system call in here, no clock and no descriptor. The event loop in [`crate::io`] tells what
//! happened, with the time; it carries out the commands in their order, and what comes of each of them
//! is an event again. Whatever may block is a helper process ([`Command::StartHelper`]) with a deadline,
//! and whatever must be durable before the next step is [`Command::PersistState`], whose completion is
//! an event. So all orders in which things may happen can be enumerated, and the tests in `explore` do.
//!
//! | module | decides |
//! |---|---|
//! | [`handle`] | which of these takes an event |
//! | [`ownership`] | which backend has the lanes |
//! | [`backends`] | what is done about it |
//! | [`attach`], [`detach`], [`take_down`], [`resize`], [`upgrade`] | the steps of one procedure each |
//! | [`fail`] | when what is in flight is answered with EIO |
//! | [`orders`] | what clients may order when, and who waits for what |
//! | [`owner_exit`] | whether an owner's end was asked for, and what follows |
//! | [`persist`] | when the state is written, and what waits for that |
//! | [`users`] | whether anything uses the device |
//! | [`view`] | what status and the event loop may know |
//!
//! Below them are [`event`], the language; [`procedure`], what may be under way, as enums of steps; and
//! [`state`], all that is decided from.

pub(crate) mod attach;
mod backends;
pub(crate) mod detach;
pub(crate) mod event;
#[cfg(test)]
mod explore;
pub(crate) mod fail;
#[cfg(test)]
mod fixture;
mod handle;
pub(crate) mod orders;
mod owner_exit;
pub(crate) mod ownership;
mod persist;
mod procedure;
pub(crate) mod resize;
mod state;
pub(crate) mod take_down;
mod timers;
pub(crate) mod upgrade;
pub(crate) mod users;
mod view;

pub(crate) use event::{
    BackendId, ClientId, Command, Condition, Event, HelperId, HelperTask, Note, Order, OwnerEnd,
    Program, Refused, Reply, Report, Revision, Survey,
};
pub(crate) use procedure::End;
pub(crate) use state::{Config, Core, Sitter};
