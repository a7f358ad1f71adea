//! From a target to a connection over which requests may be sent.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nbd_net::address::Address;
use nbd_net::socket::{ConnectError, Socket};
use nbd_net::stream::Stream;
use nbd_net::tls::{ClientTls, CredentialsError, TlsError};
use nbd_net::uri::Uri;
use nbd_proto::handshake::HandshakeError;
use thiserror::Error;

use crate::child::{Manner, Server};
use crate::fence::{self, Fence};
use crate::lock;
use crate::shake::{self, Agreed};
use crate::shape::{ChangeError, ShapeError};
use crate::target::Target;

/// How long a program that has closed its connection may take to end, if that is why.
const LAST_BREATH: Duration = Duration::from_millis(500);

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
    /// Nobody is there.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Our certificates cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The connection cannot be secured.
    #[error("cannot secure the connection")]
    Tls(#[from] TlsError),
    /// Somebody spoke in the clear while the connection was being secured.
    #[error("the server sent data in the clear behind its promise to secure the connection")]
    Impatient,
    /// The server does not agree.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The server is too slow.
    #[error("the server did not finish the handshake in time: is it an NBD server, and not busy?")]
    Slow,
    /// The server left.
    #[error("the server closed the connection during the handshake: does it admit more clients?")]
    Torn,
    /// The conversation failed.
    #[error("cannot talk to the server")]
    Io(#[source] io::Error),
    /// The program cannot be started or reached.
    #[error("cannot {0} the program")]
    Program(&'static str, #[source] io::Error),
    /// The program is no more.
    #[error("the program ended ({0}) before the handshake was done: see its words above")]
    Ended(ExitStatus),
    /// The old program cannot be ended.
    #[error("the program does not end, although it was killed: see its state with `ps`")]
    Immortal,
    /// The program serves one connection.
    #[error("the program serves one connection only, on its standard input and output")]
    Single,
    /// The export cannot be a device.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The export is not what it was.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

impl Cause {
    /// Whether nobody listens on a unix socket.
    pub(crate) fn is_local_absence(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::Failed { address: Address::Unix(_), .. }))
    }
}

/// Makes connections to a target.
#[derive(Debug)]
pub(crate) struct Dialer {
    target: Target,
    name: String,
    /// The program that was started, if one was.
    server: Mutex<Option<Server>>,
    /// How long a program may take to end.
    patience: Duration,
}

/// What came of a dialled connection beside itself.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// A program was started; this names it.
    pub(crate) started: Option<OwnedFd>,
    /// How the program before it ended by itself.
    pub(crate) ended: Option<ExitStatus>,
}

impl Dialer {
    pub(crate) fn new(target: Target, patience: Duration) -> Self {
        let name = target.to_string();
        Self { target, name, server: Mutex::default(), patience }
    }

    /// What people are told that this is about.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The program that was started.
    pub(crate) fn process(&self) -> Option<OwnedFd> {
        let server = lock(&self.server);
        server.as_ref().and_then(|server| server.process().try_clone_to_owned().ok())
    }

    /// Connects and shakes hands, all by the deadline. The first connection of several is
    /// the one that may start a program anew.
    pub(crate) fn dial(
        &self,
        deadline: Instant,
        is_first: bool,
        news: &mut News,
    ) -> Result<Agreed, Cause> {
        match &self.target {
            Target::Uri(uri) => {
                let socket = connect(uri, deadline)?;
                let mut stream = Stream::plain(socket);
                stream.set_deadline(Some(deadline));
                let tls = if uri.tls { Some(credentials(uri)?) } else { None };
                shake::hands(stream, &uri.export, tls.as_ref().map(|tls| (tls, uri.server_name())))
            }
            Target::Program(program) => {
                self.run(&program.command, program.manner(), deadline, is_first, news)
            }
        }
    }

    /// Ends the program that was started, if there is one.
    pub(crate) fn stop(&self) {
        let Some(mut server) = lock(&self.server).take() else {
            return;
        };
        if !matches!(server.stop(self.patience), Ok(Fence::Closed)) {
            tracing::error!("{}: {}", self.name, Cause::Immortal);
        }
    }

    fn run(
        &self,
        text: &str,
        manner: Manner,
        deadline: Instant,
        is_first: bool,
        news: &mut News,
    ) -> Result<Agreed, Cause> {
        if manner == Manner::Talk && !is_first {
            return Err(Cause::Single);
        }
        let fd = self.reach(text, manner, deadline, is_first, news)?;
        let socket = Socket::from_fd(fd).map_err(Cause::Io)?;
        let mut stream = Stream::plain(socket);
        stream.set_deadline(Some(deadline));
        shake::hands(stream, "", None).map_err(|cause| match cause {
            Cause::Torn => self.explain(),
            cause => cause,
        })
    }

    /// Why the program has closed its connection: because it has ended, in most cases.
    fn explain(&self) -> Cause {
        let mut slot = lock(&self.server);
        let Some(server) = &mut *slot else {
            return Cause::Torn;
        };
        let limit = Instant::now() + LAST_BREATH;
        let _ = fence::wait_readable(server.process(), Some(limit));
        match server.ended() {
            Ok(Some(status)) => Cause::Ended(status),
            _ => Cause::Torn,
        }
    }

    /// A connection to the program, which is started if need be.
    fn reach(
        &self,
        text: &str,
        manner: Manner,
        deadline: Instant,
        is_first: bool,
        news: &mut News,
    ) -> Result<OwnedFd, Cause> {
        let mut slot = lock(&self.server);
        if let Some(server) = &mut *slot {
            news.ended = server.ended().map_err(|error| Cause::Program("wait for", error))?;
            // One that talks to us has nothing more to say. It may still be writing.
            if news.ended.is_some() || manner == Manner::Talk {
                let stopped = server.stop(self.patience);
                if stopped.map_err(|error| Cause::Program("end", error))? == Fence::Open {
                    return Err(Cause::Immortal);
                }
                *slot = None;
            }
        }
        let server = match &mut *slot {
            Some(server) => server,
            None if !is_first => return Err(Cause::Single),
            None => {
                let server = Server::start(text, manner, &self.name);
                let server = server.map_err(|error| Cause::Program("start", error))?;
                news.started = server.process().try_clone_to_owned().ok();
                slot.insert(server)
            }
        };
        match server.connect(deadline) {
            Ok(Some(stream)) => Ok(stream.into()),
            Ok(None) => Err(Cause::Single),
            Err(error) => match server.ended() {
                Ok(Some(status)) => Err(Cause::Ended(status)),
                _ => Err(Cause::Program("connect to", error)),
            },
        }
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn connect(uri: &Uri, deadline: Instant) -> Result<Socket, Cause> {
    let address: &Address = &uri.address;
    let rest = deadline.saturating_duration_since(Instant::now());
    Ok(Socket::connect(address, rest.max(Duration::from_millis(1)))?)
}

fn credentials(uri: &Uri) -> Result<ClientTls, Cause> {
    Ok(ClientTls::load(uri.tls_certificates.as_deref(), uri.tls_verify)?)
}
