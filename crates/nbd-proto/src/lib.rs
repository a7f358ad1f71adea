//! The NBD protocol: messages to bytes and back, requests to checked commands, and the
//! [`handshake`] that precedes them as state machines.
//!
//! Everything here is a pure function of bytes and integers. There is no I/O and no clock; the
//! crate builds for targets that have neither. Only the handshake allocates. The data that travels behind a
//! header never enters the codec either: the engine moves it between socket and storage itself.
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
//! `decode(&[u8; LEN])`, which fails on a wrong magic number and on nothing else: command types,
//! flags and errors that this crate has never heard of survive a round trip. Every field is put
//! at its own offset, big-endian; no Rust struct is ever laid over the wire, because the padding
//! of a struct is a compiler's business and no part of the protocol.
//!
//! What a request *means* is decided once, by [`Request::check`]: it yields a [`Command`] that
//! lies within the [`Export`], or the [`Rejection`] to answer with.
//!
//! ```
//! use nbd_proto::{Command, CommandFlags, CommandType, Export, NbdError, Request, SimpleReply};
//! use nbd_proto::TransmissionFlags;
//!
//! // A client asks for one block,
//! let (flags, command) = (CommandFlags::NONE, CommandType::READ);
//! let bytes = Request { flags, command, cookie: 1, offset: 4096, length: 512 }.encode();
//!
//! // and a server finds out whether it may.
//! let export = Export::new(1 << 20, TransmissionFlags::HAS_FLAGS);
//! let request = Request::decode(&bytes)?;
//! let error = match request.check(&export) {
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
mod export;
mod field;
mod flags;
pub mod handshake;
pub mod magic;
pub mod payload;
mod rejection;
mod reply;
mod reply_type;
mod request;

pub use command::Command;
pub use command_type::CommandType;
pub use error::NbdError;
pub use export::Export;
pub use flags::{CommandFlags, ReplyFlags, TransmissionFlags};
pub use handshake::BlockSizes;
pub use magic::WrongMagic;
pub use rejection::Rejection;
pub use reply::{ExtendedReplyChunk, ReplyKind, SimpleReply, StructuredReplyChunk};
pub use reply_type::ReplyType;
pub use request::{ExtendedRequest, Request};
