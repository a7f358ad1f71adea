//! What the project's processes say to each other and to those who run them, and where they find
//! each other.
//!
//! | module | idea |
//! |---|---|
//! | [`wire`] | values to bytes and back: the only place that knows bincode |
//! | [`channel`] | a unix stream with a greeting, frames and passed descriptors |
//! | [`backend`] | between a backend and its holder |
//! | [`control`] | between nbd-ctl and a holder |
//! | [`handover`] | from a holder to the program that it becomes |
//! | [`history`] | what is still to be told when the holder that saw it is gone |
//! | [`status`] | what a holder tells about its device |
//! | [`latency`] | how long requests took, as part of that |
//! | [`attach_options`] | how a device is attached: every option once |
//! | [`policy`] | what becomes of requests that no backend answers |
//! | [`trace`] | requests that were executed |
//! | [`registry`] | the runtime directory |
//! | [`remains`] | what is left of a device that has lost its holder |
//! | [`size`] | sizes as people write them |
//! | [`settings`] | what can be changed of a backend while it runs |
//! | [`service`] | what a service manager wants to hear |
//! | [`process`] | naming a process so that a reused pid is not mistaken for it |

pub mod attach_options;
pub mod backend;
pub mod channel;
pub mod control;
pub mod handover;
pub mod history;
pub mod latency;
pub mod policy;
pub mod process;
pub mod registry;
pub mod remains;
pub mod service;
pub mod settings;
pub mod size;
mod state_file;
pub mod status;
pub mod trace;
pub mod wire;

pub use channel::{Channel, ChannelError};
