//! The NBD protocol: messages to bytes and back, requests to checked commands, and the
//! [`handshake`] that precedes them as state machines.
//!
//! This crate is for servers and clients alike. Invariants:
//!
//! - No I/O, no clock, no `unsafe`: the crate also builds for targets without an operating system.
//!   Only the handshake allocates.
//! - A request's data never enters the codec; the caller moves it between socket and storage.
//! - Each field is encoded at its own offset, big-endian. No Rust struct is laid over the wire,
//!   because the compiler decides about a struct's padding.
//! - Unknown command types, flags and errors survive a round trip.
//! - A [`Command`] has passed [`Request::check`]; code that receives one need not check it again.
//!
//! | what | bytes | type |
//! |---|---|---|
//! | request | 28 | [`Request`] |
//! | extended request | 32 | [`ExtendedRequest`] |
//! | simple reply | 16 | [`SimpleReply`] |
//! | structured reply chunk | 20 | [`StructuredReplyChunk`] |
//! | extended reply chunk | 32 | [`ExtendedReplyChunk`] |
//!
//! A fixed message has `LEN`, `encode(&self) -> [u8; LEN]`, which cannot fail, and
//! `decode(&[u8; LEN])`, which fails only on a wrong magic number.
//!
//! [`Request::check`] decides once what a request means: it yields a [`Command`] that satisfies the
//! export's [`RequestRules`], or the [`Rejection`] to answer with.
//!
//! ```
//! use nbd_proto::{Command, CommandFlags, CommandType, RequestRules, NbdError, Request, SimpleReply};
//! use nbd_proto::TransmissionFlags;
//!
//! // A client asks for one block,
//! let (flags, command) = (CommandFlags::NONE, CommandType::READ);
//! let bytes = Request { flags, command, cookie: 1, offset: 4096, length: 512 }.encode();
//!
//! // and a server checks whether it may.
//! let rules = RequestRules::new(1 << 20, TransmissionFlags::HAS_FLAGS);
//! let request = Request::decode(&bytes)?;
//! let error = match request.check(&rules) {
//!     Ok(Command::Read { offset: 4096, length: 512 }) => NbdError::SUCCESS,
//!     Ok(_) => unreachable!(),
//!     Err(rejection) => rejection.error(),
//! };
//! let reply = SimpleReply { error, cookie: request.cookie }.encode();
//! assert_eq!(reply.len(), 16);
//! # Ok::<(), nbd_proto::WrongMagic>(())
//! ```
//!
//! The specification is `doc/proto.md` of the NetworkBlockDevice/nbd repository, its branch
//! `extension-ext-header` for the extended messages. Section names in the documentation refer to
//! it, and each constant names its C counterpart.

#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

mod check;
mod command;
mod command_type;
mod error;
mod field;
mod flags;
pub mod handshake;
pub mod magic;
pub mod payload;
mod rejection;
mod reply;
mod reply_type;
mod request;
mod request_rules;

pub use command::Command;
pub use command_type::CommandType;
pub use error::NbdError;
pub use flags::{CommandFlags, ReplyFlags, TransmissionFlags};
pub use handshake::BlockSizes;
pub use magic::WrongMagic;
pub use rejection::Rejection;
pub use reply::{ExtendedReplyChunk, ReplyKind, SimpleReply, StructuredReplyChunk};
pub use reply_type::ReplyType;
pub use request::{ExtendedRequest, Request};
pub use request_rules::RequestRules;
