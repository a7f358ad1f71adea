//! Why there is no connection.

use std::io;
use std::process::ExitStatus;

use nbd_net::address::Address;
use nbd_net::socket::ConnectError;
use nbd_net::tls::{CredentialsError, TlsError};
use nbd_proto::handshake::HandshakeError;
use thiserror::Error;

use crate::connect::export_shape::{ChangeError, ShapeError};

/// Why there is no connection to a server.
#[derive(Debug, Error)]
#[error("{target}")]
pub struct ClientError {
    /// The server.
    pub target: String,
    /// What went wrong.
    #[source]
    pub cause: Cause,
}

/// What can go wrong before the first request.
#[derive(Debug, Error)]
pub enum Cause {
    /// No server accepts the connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Our certificates cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The connection cannot be secured.
    #[error("cannot secure the connection")]
    Tls(#[from] TlsError),
    /// Plain text came while the connection was being secured: an attempt to inject it.
    #[error("the server sent data in the clear behind its promise to secure the connection")]
    PlaintextAfterStartTls,
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The server is too slow.
    #[error("the server did not finish the handshake in time: is it an NBD server, and not busy?")]
    HandshakeTimeout,
    /// The server left.
    #[error("the server closed the connection during the handshake: does it admit more clients?")]
    UnexpectedEof,
    /// The conversation failed.
    #[error("cannot talk to the server")]
    Io(#[source] io::Error),
    /// The program cannot be started or reached.
    #[error("cannot {0} the program")]
    Program(&'static str, #[source] io::Error),
    /// The program is no more.
    #[error("the program ended ({status}) before the handshake was done{}", said(words))]
    Ended {
        /// How.
        status: ExitStatus,
        /// Its last line.
        words: String,
    },
    /// The old program cannot be ended.
    #[error("the program does not end, although it was killed: see its state with `ps`")]
    WontExit,
    /// The program serves one connection.
    #[error(
        "the program serves one connection only, on its standard input and output: leave connections= out"
    )]
    OneConnectionOnly,
    /// The export cannot be a device.
    #[error(transparent)]
    ExportShape(#[from] ShapeError),
    /// The export is not what it was.
    #[error(transparent)]
    PoolChange(#[from] ChangeError),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

fn said(words: &str) -> String {
    match words {
        "" => ", without a word".into(),
        words => format!("; it said: {words}"),
    }
}

impl Cause {
    /// Whether no server listens on a unix socket.
    pub(crate) fn is_local_absence(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::Failed { address: Address::Unix(_), .. }))
    }
}
