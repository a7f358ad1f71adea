//! What can go wrong between a server and us.

use std::io;

use nbd_proto::handshake::ReplyStyle;
use nbd_proto::{CommandType, ReplyKind, ReplyType, WrongMagic};
use thiserror::Error;

/// The server does not speak the protocol: its connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum ProtocolError {
    #[error("sent something that is no reply")]
    Magic(#[from] WrongMagic),
    #[error("sent a reply of the {found:?} kind where {negotiated:?} was agreed on")]
    Style { found: ReplyKind, negotiated: ReplyStyle },
    #[error("answered a request that does not exist (cookie {0:#x})")]
    Cookie(u64),
    #[error("answered a {0} with a simple reply although it had agreed on another kind")]
    SimpleSuccess(CommandType),
    #[error("answered a {to} with a chunk of the type {found}")]
    Chunk { found: ReplyType, to: CommandType },
    #[error("sent a chunk of the type {0} with a payload that does not belong there")]
    Payload(ReplyType),
    #[error("named offset {found} in its reply to a request at {offset}")]
    OtherOffset { found: u64, offset: u64 },
    #[error("sent {length} bytes of content for {offset}, where they were not asked for")]
    Outside { offset: u64, length: u64 },
    #[error("sent {length} bytes of content for {offset}, some of them for the second time")]
    Twice { offset: u64, length: u64 },
    #[error("ended its reply to a read of {length} bytes before all of them had come")]
    ShortData { length: u32 },
    #[error("described metadata context {0}, which it was not asked about or had described")]
    Context(u32),
    #[error("ended its reply to a block status without one")]
    NoStatus,
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub(crate) enum ConnectionLost {
    #[error("the server closed it")]
    Closed,
    #[error("the server closed it in the middle of a reply")]
    UnexpectedEof,
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the server {0}")]
    Protocol(#[from] ProtocolError),
    #[error("cannot receive")]
    Receive(#[source] io::Error),
    #[error("cannot send")]
    Send(#[source] io::Error),
}
