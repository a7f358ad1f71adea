//! What the threads of a connection share, and why it ends.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex};

use nbd_net::socket::Socket;
use nbd_proto::RequestRules as Rules;
use thiserror::Error;

use crate::export::Export;
use crate::limits::Limits;
use crate::memory_budget::MemoryBudget;
use crate::reply::ReplyEncoder;
use crate::request::ProtocolError;
use crate::send_buffer::SendBuffer;

/// Why a connection ended without an orderly disconnect.
#[derive(Debug, Error)]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("closed the connection in the middle of a request")]
    UnexpectedEof,
    #[error("was in the middle of sending a request when the server was stopped")]
    Stopped,
    #[error("was silent for too long")]
    Idle,
    #[error(
        "left a request half sent for too long, or sent it too slowly, while others waited for its memory"
    )]
    TooSlow,
    #[error("does not answer, nor does its machine")]
    PeerVanished,
    #[error("cannot receive")]
    Receive(#[source] io::Error),
}

/// What the receiving thread and the workers share.
pub(crate) struct Connection {
    pub(crate) export: Arc<Export>,
    pub(crate) rules: Rules,
    pub(crate) replies: ReplyEncoder,
    pub(crate) limits: Limits,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) socket: Arc<Socket>,
    pub(crate) is_stopping: Arc<AtomicBool>,
    pub(crate) shared: Mutex<SendState>,
    pub(crate) changed: Condvar,
}

/// What the connection's lock protects.
pub(crate) struct SendState {
    pub(crate) send_buffer: SendBuffer,
    /// Whether the receiving thread waits for [`Connection::changed`]. Workers skip the wake-up, a
    /// system call, while it does not.
    pub(crate) has_waiter: bool,
}

impl SendState {
    pub(crate) fn new(send_buffer: SendBuffer) -> Self {
        Self { send_buffer, has_waiter: false }
    }
}
