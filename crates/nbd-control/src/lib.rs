//! What the project's processes say to each other and to those who run them, and where they find
//! each other.
//!
//! Three kinds of process use it: nbd-ctl, nbd-kernel-holder and backends. A backend of your own links
//! nbd-backend, which has this conversation for it.
//!
//! | module | idea |
//! |---|---|
//! | [`channel`] | a unix stream with a greeting, frames and passed descriptors |
//! | [`wire`] | values to bytes and back: the only place that knows bincode |
//! | [`backend`] | between a backend and its holder |
//! | [`control`], [`status`], [`latency`], [`trace`] | between nbd-ctl and a holder |
//! | [`handover`] | from a holder to the program that it becomes |
//! | [`registry`] | the runtime directory: sockets, logs, and the state for the next holder |
//! | [`history`], [`remains`] | what is told, and what is left, of a device that has lost its holder |
//! | [`attach_options`], [`policy`] | how a device is attached: every option once |
//! | `completion` | SPECs for the shell to complete (feature `completion`) |
//! | [`settings`] | what can be changed of a backend while it runs |
//! | [`size`], [`text`] | sizes as people write them; text that is safe to show |
//! | [`system_error`] | errors of the system in words that name the way out |
//! | [`process`], [`service`] | naming a process so that a reused pid is not mistaken for it; its service manager |
//!
//! # Invariants
//!
//! - A message is of one release: each side of a [`Channel`] first tells its version, and refuses another one.
//! - What a peer sends is bounded, in bytes and in descriptors, and is decoded whole or not at all.
//! - A [`registry::State`] is replaced all at once, by the process that has locked the device's folder. A value
//!   in it that this build does not know is an error, never a default.
//! - Nothing here opens a device, or asks the driver for anything.
//!
//! # Example
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::time::Duration;
//!
//! use nbd_control::Channel;
//! use nbd_control::control::{Request, Response};
//!
//! let (nbd_ctl, holder) = UnixStream::pair()?;
//! let (mut nbd_ctl, mut holder) = (Channel::new(nbd_ctl)?, Channel::new(holder)?);
//! nbd_ctl.send(&Request::Resume, &[])?;
//! let limit = Duration::from_secs(60);
//! assert_eq!(holder.receive_within::<Request>(limit)?.message, Request::Resume);
//! holder.send(&Response::Done { text: "nbd0 goes on".into() }, &[])?;
//! let answer: Response = nbd_ctl.receive_within(limit)?.message;
//! assert_eq!(answer, Response::Done { text: "nbd0 goes on".into() });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod attach_options;
pub mod comma_list;
#[cfg(feature = "completion")]
pub mod completion;
mod messages;
pub mod policy;
pub mod process;
pub mod registry;
pub mod service;
pub mod settings;
pub mod size;
pub mod system_error;
pub mod text;

pub use messages::{backend, channel, control, handover, latency, status, trace, wire};
pub use registry::{history, remains};

pub use channel::{Channel, ChannelError};
