//! One client, from the first byte to the last.

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

use crate::connection::{Connection, ConnectionError, SharedOutbox};
use crate::export::Exports;
use crate::inbox::Inbox;
use crate::memory::Memory;
use crate::outbox::Outbox;
use crate::reply::Replies;

/// What all sessions of a server have in common.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) exports: Exports,
    pub(crate) memory: Arc<Memory>,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) policy: TlsPolicy,
    pub(crate) is_stopping: Arc<AtomicBool>,
}

/// Why a session ended in disorder.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    #[error("did not finish the handshake in time")]
    Slow,
    #[error("closed the connection during the handshake")]
    Torn,
    #[error("handshake failed")]
    Handshake(#[from] HandshakeError),
    #[error("cannot secure the connection")]
    Tls(#[from] TlsError),
    #[error("sent data in the clear behind its request to secure the connection")]
    Impatient,
    #[error("handshake failed")]
    Io(#[source] io::Error),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// A client, and what there is to end where it is to be left.
pub(crate) struct Client {
    pub(crate) socket: Arc<Socket>,
    /// In the transmission phase.
    connection: OnceLock<Arc<Connection>>,
}

impl Client {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket: socket.into(), connection: OnceLock::new() }
    }

    /// Leaves the client, whatever it is doing. It may have to be tried again.
    pub(crate) fn try_hang_up(&self) {
        match self.connection.get() {
            Some(connection) => connection.try_hang_up(),
            // Nothing of it can be under way.
            None => self.socket.shutdown(),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.socket.peer()).finish()
    }
}

/// Serves one client. Whatever it does is its own affair, apart from one line in the log.
pub(crate) fn serve(context: &Context, client: &Client) {
    let peer = client.socket.peer();
    if let Err(error) = converse(context, client) {
        tracing::warn!("{peer}: {}", nbd_backend::chain(&error));
    }
    context.memory.trim();
}

fn converse(context: &Context, client: &Client) -> Result<(), SessionError> {
    let limits = context.exports.limits;
    let mut stream = Stream::plain(Arc::clone(&client.socket));
    stream.set_deadline(Some(Instant::now() + limits.handshake));
    let Some((mut stream, agreement, rest)) = shake_hands(context, stream)? else {
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
    let inbox = Inbox::new(receiver, &rest, &limits, Arc::clone(&memory));
    let mut inbox = inbox.map_err(SessionError::Io)?;
    let connection = Arc::new(Connection {
        export: Arc::clone(export),
        rules: export.rules(&agreement.offer, allocation.is_some()),
        replies: Replies { style: agreement.style, allocation },
        limits,
        memory,
        socket,
        is_stopping: Arc::clone(&context.is_stopping),
        shared: Mutex::new(SharedOutbox::new(Outbox::new(sender))),
        changed: Condvar::new(),
    });
    client.connection.get_or_init(|| Arc::clone(&connection));
    Ok(connection.run(&mut inbox)?)
}

/// Haggles until there is an agreement, or until the client has seen enough. What the client has
/// sent beyond the handshake is returned as well.
fn shake_hands(
    context: &Context,
    mut stream: Stream,
) -> Result<Option<(Stream, Agreement, Vec<u8>)>, SessionError> {
    let mut handshake = Handshake::new(context.policy);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    handshake.greet(&mut output);
    loop {
        let (consumed, progress) = handshake.handle(&input, &context.exports, &mut output)?;
        input.drain(..consumed);
        // A client that only wanted to look may leave without listening to the end.
        let sent = stream.write_all(&output);
        output.clear();
        match progress {
            Progress::Aborted => return Ok(None),
            Progress::Transmission(agreement) => {
                sent.map_err(failed)?;
                return Ok(Some((stream, agreement, input)));
            }
            Progress::StartTls => {
                sent.map_err(failed)?;
                if !input.is_empty() {
                    return Err(SessionError::Impatient);
                }
                // The machine offers TLS only where there are certificates.
                let Some(tls) = &context.tls else {
                    return Err(SessionError::Impatient);
                };
                stream = stream.into_tls_server(tls)?;
                handshake.secured();
            }
            Progress::More => {
                match sent.map_err(failed) {
                    // What it had said before it left is still to be heard.
                    Err(SessionError::Torn) => {}
                    sent => sent?,
                }
                match read_more(&mut stream, &mut input) {
                    // All that it has said was answered, so it may leave.
                    Err(SessionError::Torn) if input.is_empty() => return Ok(None),
                    read => read?,
                }
            }
        }
    }
}

/// Reads what has come, at least a byte.
fn read_more(stream: &mut Stream, input: &mut Vec<u8>) -> Result<(), SessionError> {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer).map_err(failed)? {
        0 => Err(SessionError::Torn),
        count => {
            input.extend_from_slice(&buffer[..count]);
            Ok(())
        }
    }
}

fn failed(error: io::Error) -> SessionError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => SessionError::Slow,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => SessionError::Torn,
        _ => SessionError::Io(error),
    }
}
