//! One client: handshake, then transmission.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Instant;

use nbd_net::socket::Socket;
use nbd_net::stream::Stream;
use nbd_net::tls::{ServerTls, TlsError};
use nbd_proto::handshake::{
    Agreement, HandshakeError, ServerHandshake as Handshake, ServerProgress as Progress, TlsPolicy,
};
use thiserror::Error;

use crate::connection::{Connection, ConnectionError, SendState};
use crate::export::Exports;
use crate::memory_budget::MemoryBudget;
use crate::recv_buffer::RecvBuffer;
use crate::reply::ReplyEncoder;
use crate::send_buffer::SendBuffer;

/// What all sessions of a server share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) exports: Exports,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) policy: TlsPolicy,
    pub(crate) is_stopping: Arc<AtomicBool>,
}

/// Why a session ended without an orderly disconnect.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    #[error("did not finish the handshake in time")]
    HandshakeTimeout,
    #[error("closed the connection during the handshake")]
    UnexpectedEof,
    #[error("handshake failed")]
    Handshake(#[from] HandshakeError),
    #[error("cannot secure the connection")]
    Tls(#[from] TlsError),
    #[error("sent data in the clear behind its request to secure the connection")]
    DataBeforeTls,
    #[error("handshake failed")]
    Io(#[source] io::Error),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// A client, with what is needed to disconnect it.
pub(crate) struct Client {
    pub(crate) socket: Arc<Socket>,
    /// In the transmission phase.
    connection: OnceLock<Arc<Connection>>,
}

impl Client {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket: socket.into(), connection: OnceLock::new() }
    }

    /// Disconnects the client. Does nothing while its connection is locked, so the caller tries
    /// again.
    pub(crate) fn try_hang_up(&self) {
        match self.connection.get() {
            Some(connection) => connection.try_hang_up(),
            // No request can be in flight before the transmission phase.
            None => self.socket.shutdown(),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.socket.peer()).finish()
    }
}

/// Serves one client. An error ends this connection only, and is logged in one line.
pub(crate) fn serve(context: &Context, client: &Client) {
    let peer = client.socket.peer();
    if let Err(error) = run_session(context, client) {
        tracing::warn!("{peer}: {}", nbd_backend::chain(&error));
    }
    context.memory.trim();
}

fn run_session(context: &Context, client: &Client) -> Result<(), SessionError> {
    let limits = context.exports.limits;
    let mut stream = Stream::plain(Arc::clone(&client.socket));
    stream.set_deadline(Some(Instant::now() + limits.handshake));
    let Some((mut stream, agreement, rest)) = negotiate(context, stream)? else {
        return Ok(());
    };
    stream.set_deadline(None);
    let Some(export) = context.exports.get(&agreement.offer.name) else {
        return Ok(());
    };
    let allocation = agreement.allocation;
    let (receiver, sender) = stream.split();
    let socket = Arc::clone(sender.socket());
    let memory = Arc::clone(&context.memory);
    let recv_buffer = RecvBuffer::new(receiver, &rest, &limits, Arc::clone(&memory));
    let mut recv_buffer = recv_buffer.map_err(SessionError::Io)?;
    let connection = Arc::new(Connection {
        export: Arc::clone(export),
        rules: export.rules(&agreement.offer, allocation.is_some()),
        replies: ReplyEncoder { style: agreement.style, allocation },
        limits,
        memory,
        socket,
        is_stopping: Arc::clone(&context.is_stopping),
        shared: Mutex::new(SendState::new(SendBuffer::new(sender))),
        changed: Condvar::new(),
    });
    client.connection.get_or_init(|| Arc::clone(&connection));
    Ok(connection.run(&mut recv_buffer)?)
}

/// Negotiates until the client chooses an export; `None` if it leaves without one. The bytes are
/// those that the client has sent after the handshake.
fn negotiate(
    context: &Context,
    mut stream: Stream,
) -> Result<Option<(Stream, Agreement, Vec<u8>)>, SessionError> {
    let mut handshake = Handshake::new(context.policy);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    handshake.greet(&mut output);
    loop {
        let (consumed, progress) = handshake.handle(&input, &context.exports, &mut output)?;
        input.drain(..consumed);
        // A client that only lists exports may disconnect without reading all replies.
        let sent = stream.write_all(&output);
        output.clear();
        match progress {
            Progress::Aborted => return Ok(None),
            Progress::Transmission(agreement) => {
                sent.map_err(io_error)?;
                return Ok(Some((stream, agreement, input)));
            }
            Progress::StartTls => {
                sent.map_err(io_error)?;
                if !input.is_empty() {
                    return Err(SessionError::DataBeforeTls);
                }
                // Unreachable: the handshake offers TLS only where there are certificates.
                let Some(tls) = &context.tls else {
                    return Err(SessionError::DataBeforeTls);
                };
                stream = stream.into_tls_server(tls)?;
                handshake.secured();
            }
            Progress::More => {
                match sent.map_err(io_error) {
                    // Options that it sent before it disconnected are still in the socket.
                    Err(SessionError::UnexpectedEof) => {}
                    sent => sent?,
                }
                match read_more(&mut stream, &mut input) {
                    // All of its options were answered, so it may disconnect.
                    Err(SessionError::UnexpectedEof) if input.is_empty() => return Ok(None),
                    read => read?,
                }
            }
        }
    }
}

/// Reads at least one byte.
fn read_more(stream: &mut Stream, input: &mut Vec<u8>) -> Result<(), SessionError> {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer).map_err(io_error)? {
        0 => Err(SessionError::UnexpectedEof),
        count => {
            input.extend_from_slice(&buffer[..count]);
            Ok(())
        }
    }
}

fn io_error(error: io::Error) -> SessionError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => SessionError::HandshakeTimeout,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => SessionError::UnexpectedEof,
        _ => SessionError::Io(error),
    }
}
