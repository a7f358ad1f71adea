//! From a target to a connection over which requests may be sent.

use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nbd_net::address::Address;
use nbd_net::socket::Socket;
use nbd_net::stream::Stream;
use nbd_net::tls::ClientTls;
use nbd_net::uri::Uri;
use nbd_proto::handshake::ListedExport;

use crate::connect::child::{Server, SpawnMode};
use crate::connect::error::{Cause, ClientError};
use crate::connect::handshake::{self, NegotiatedStream};
use crate::connect::target::Target;
use crate::fence::{self, Fence};
use crate::sync::lock;

/// How long a program that has closed its connection may take to exit, so that the exit is reported
/// as the cause.
const EXIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Makes connections to a target.
#[derive(Debug)]
pub(crate) struct Dialer {
    target: Target,
    name: String,
    /// The program that was started, if one was.
    server: Mutex<Option<Server>>,
    /// How long a program may take to end.
    exit_timeout: Duration,
}

/// What happened to the program while dialling.
#[derive(Debug, Default)]
pub(crate) struct DialEvents {
    /// A program was started; this names it.
    pub(crate) started: Option<OwnedFd>,
    /// How the program before it ended by itself.
    pub(crate) ended: Option<ExitStatus>,
}

impl Dialer {
    pub(crate) fn new(target: Target, exit_timeout: Duration) -> Self {
        let name = target.to_string();
        Self { target, name, server: Mutex::default(), exit_timeout }
    }

    /// The target's name, for messages.
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
        events: &mut DialEvents,
    ) -> Result<NegotiatedStream, Cause> {
        match &self.target {
            Target::Uri(uri) => {
                let (stream, tls) = open(uri, deadline)?;
                let tls = tls.as_ref().map(|tls| (tls, uri.server_name()));
                handshake::negotiate(stream, &uri.export, tls)
            }
            Target::Program(program) => {
                self.run(&program.command, program.spawn_mode(), deadline, is_first, events)
            }
        }
    }

    /// Ends the program that was started, if there is one.
    pub(crate) fn stop(&self) {
        let Some(mut server) = lock(&self.server).take() else {
            return;
        };
        if !matches!(server.stop(self.exit_timeout), Ok(Fence::Closed)) {
            tracing::error!("{}: {}", self.name, Cause::WontExit);
        }
    }

    fn run(
        &self,
        text: &str,
        spawn_mode: SpawnMode,
        deadline: Instant,
        is_first: bool,
        events: &mut DialEvents,
    ) -> Result<NegotiatedStream, Cause> {
        if spawn_mode == SpawnMode::Stdio && !is_first {
            return Err(Cause::OneConnectionOnly);
        }
        let fd = self.reach(text, spawn_mode, deadline, is_first, events)?;
        let socket = Socket::from_fd(fd).map_err(Cause::Io)?;
        let mut stream = Stream::plain(socket);
        stream.set_deadline(Some(deadline));
        handshake::negotiate(stream, "", None).map_err(|cause| match cause {
            Cause::UnexpectedEof => self.explain(),
            cause => cause,
        })
    }

    /// Why the program has closed its connection: because it has ended, in most cases.
    fn explain(&self) -> Cause {
        let mut slot = lock(&self.server);
        let Some(server) = &mut *slot else {
            return Cause::UnexpectedEof;
        };
        let limit = Instant::now() + EXIT_TIMEOUT;
        let _ = fence::wait_readable(server.process(), Some(limit));
        match server.ended() {
            Ok(Some(status)) => Cause::Ended { status, words: server.last_words(EXIT_TIMEOUT) },
            _ => Cause::UnexpectedEof,
        }
    }

    /// A connection to the program, which is started if need be.
    fn reach(
        &self,
        text: &str,
        spawn_mode: SpawnMode,
        deadline: Instant,
        is_first: bool,
        events: &mut DialEvents,
    ) -> Result<OwnedFd, Cause> {
        let mut slot = lock(&self.server);
        if let Some(server) = &mut *slot {
            let ended = server.ended().map_err(|error| Cause::Program("wait for", error))?;
            // One that talks to us has nothing more to say. It may still be writing.
            if ended.is_some() || spawn_mode == SpawnMode::Stdio {
                let stopped = server.stop(self.exit_timeout);
                if stopped.map_err(|error| Cause::Program("end", error))? == Fence::Open {
                    return Err(Cause::WontExit);
                }
                *slot = None;
                // Told once, and not in each attempt to stop what a supervisor has left.
                events.ended = ended;
            }
        }
        let server = match &mut *slot {
            Some(server) => server,
            None if !is_first => return Err(Cause::OneConnectionOnly),
            None => {
                // Those that do not end are to be dead when a successor's patience is over.
                let grace = self.exit_timeout / 2;
                let server = Server::start(text, spawn_mode, &self.name, grace);
                let server = server.map_err(|error| Cause::Program("start", error))?;
                events.started = server.process().try_clone_to_owned().ok();
                slot.insert(server)
            }
        };
        match server.connect(deadline) {
            Ok(Some(stream)) => Ok(stream.into()),
            Ok(None) => Err(Cause::OneConnectionOnly),
            Err(error) => match server.ended() {
                Ok(Some(status)) => {
                    Err(Cause::Ended { status, words: server.last_words(EXIT_TIMEOUT) })
                }
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

/// The exports of a server, with what it tells of each. The name of an export in the URI does not matter.
///
/// # Errors
///
/// The server cannot be reached, refuses to list its exports, or has not done so within the time.
pub fn list(uri: &Uri, limit: Duration) -> Result<Vec<ListedExport>, ClientError> {
    let ask = || {
        let (stream, tls) = open(uri, Instant::now() + limit)?;
        handshake::list(stream, tls.as_ref().map(|tls| (tls, uri.server_name())))
    };
    ask().map_err(|cause| ClientError { target: uri.to_string(), cause })
}

/// A connection to be done with by the deadline, and what secures it.
fn open(uri: &Uri, deadline: Instant) -> Result<(Stream, Option<ClientTls>), Cause> {
    let mut stream = Stream::plain(connect(uri, deadline)?);
    stream.set_deadline(Some(deadline));
    Ok((stream, if uri.tls { Some(credentials(uri)?) } else { None }))
}

fn connect(uri: &Uri, deadline: Instant) -> Result<Socket, Cause> {
    let address: &Address = &uri.address;
    let rest = deadline.saturating_duration_since(Instant::now());
    Ok(Socket::connect(address, rest.max(Duration::from_millis(1)))?)
}

fn credentials(uri: &Uri) -> Result<ClientTls, Cause> {
    Ok(ClientTls::load(uri.tls_certificates.as_deref(), uri.tls_verify)?)
}
