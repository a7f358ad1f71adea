//! Accepting clients, a thread for each, and stopping after the requests in flight are done.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbd_backend::AbortOnPanic;
use nbd_net::listener::Listeners;
use nbd_net::socket::Socket;
use nbd_net::tls::ServerTls;
use nbd_proto::handshake::TlsPolicy;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::export::{Export, Exports};
use crate::limits::Limits;
use crate::memory_budget::MemoryBudget;
use crate::session::{self, Client, Context};

/// A server: some exports, and the clients that use them.
#[derive(Debug)]
pub struct Server {
    context: Arc<Context>,
    clients: Arc<Clients>,
}

/// Whether connections use TLS.
#[derive(Debug, Default)]
pub enum Security {
    /// No TLS.
    #[default]
    None,
    /// TLS for clients that ask for it.
    Optional(ServerTls),
    /// Only clients that ask for TLS are served.
    Required(ServerTls),
}

impl Server {
    /// A server that does not listen yet.
    pub fn new(exports: Vec<Export>, security: Security, limits: Limits) -> Self {
        let (policy, tls) = match security {
            Security::None => (TlsPolicy::Off, None),
            Security::Optional(tls) => (TlsPolicy::Optional, Some(tls)),
            Security::Required(tls) => (TlsPolicy::Required, Some(tls)),
        };
        let list = exports.into_iter().map(Arc::new).collect();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let exports = Exports { list, limits };
        let memory = MemoryBudget::new(limits.memory);
        let context = Arc::new(Context { exports, memory, tls, policy, is_stopping });
        Self { context, clients: Arc::default() }
    }

    /// Serves clients until `stop` becomes readable. Then it accepts no more clients, finishes the
    /// requests in flight, and closes all connections, after [`Limits::grace`] at the latest.
    /// Returns earlier if no more clients can come and the last one has disconnected.
    ///
    /// # Errors
    ///
    /// If accepting a client fails for good, `stop` cannot be duplicated, or the thread that waits
    /// for `stop` cannot be started. Errors of a client end its connection only, and are logged.
    pub fn serve(&self, listeners: Listeners, stop: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(socket) = listeners.accept(stop)? {
            self.admit(socket);
        }
        drop(listeners);
        let stop = stop.try_clone_to_owned()?;
        let (context, clients) = (Arc::clone(&self.context), Arc::clone(&self.clients));
        let stopper = std::thread::Builder::new().name("stop".into());
        stopper.spawn(move || {
            wait_readable(&stop);
            context.is_stopping.store(true, Ordering::Relaxed);
            clients.for_each(|client| client.socket.shutdown_receive());
            if !clients.wait(Some(context.exports.limits.grace)) {
                clients.hang_up();
            }
        })?;
        self.clients.wait(None);
        Ok(())
    }

    fn admit(&self, socket: Socket) {
        let max = self.context.exports.limits.connections;
        let peer = socket.peer();
        let client = Arc::new(Client::new(socket));
        let Some(guard) = self.clients.register(Arc::clone(&client), max) else {
            tracing::warn!("{peer}: turned away: {max} clients are connected");
            return;
        };
        let context = Arc::clone(&self.context);
        let serve = move || {
            let _abort = AbortOnPanic;
            session::serve(&context, &client);
            drop(guard);
        };
        if let Err(error) = std::thread::Builder::new().name("client".into()).spawn(serve) {
            tracing::warn!("{peer}: turned away: cannot start a thread: {error}");
        }
    }
}

fn wait_readable(fd: &OwnedFd) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
}

/// How long connections without stuck requests may take to end after [`Limits::grace`] ...
const HANG_UP_TIMEOUT: Duration = Duration::from_millis(500);
/// ... and how often the server tries to end them: it cannot while the connection's lock is held.
const HANG_UP_INTERVAL: Duration = Duration::from_millis(20);

/// The connected clients.
#[derive(Debug, Default)]
struct Clients {
    list: Mutex<HashMap<u64, Arc<Client>>>,
    left: Condvar,
    next: AtomicU64,
    /// Requests that are still in flight are not waited for any more.
    is_abandoned: AtomicBool,
}

impl Clients {
    /// Registers a client for as long as the guard lives; `None` if there are too many.
    fn register(self: &Arc<Self>, client: Arc<Client>, max: usize) -> Option<ClientGuard> {
        let mut clients = self.lock();
        if clients.len() >= max {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        clients.insert(id, client);
        Some(ClientGuard { clients: Arc::clone(self), id })
    }

    fn for_each(&self, act: impl Fn(&Client)) {
        for client in self.lock().values() {
            act(client);
        }
    }

    /// Disconnects all clients. Storage that does not answer must not keep the server from ending;
    /// a connection with stuck requests ends with them, or with the process.
    fn hang_up(&self) {
        let deadline = Instant::now() + HANG_UP_TIMEOUT;
        loop {
            self.for_each(Client::try_hang_up);
            if self.wait(Some(HANG_UP_INTERVAL)) {
                return;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        self.for_each(|client| {
            tracing::warn!(
                "{}: requests have not ended within --grace, and are abandoned",
                client.socket.peer()
            );
        });
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.left.notify_all();
    }

    /// Waits until all clients have disconnected or are abandoned; `false` after the limit.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut clients = self.lock();
        while !clients.is_empty() && !self.is_abandoned.load(Ordering::Relaxed) {
            clients = match deadline {
                None => self.left.wait(clients).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let rest = deadline.saturating_duration_since(Instant::now());
                    if rest.is_zero() {
                        return false;
                    }
                    let waited = self.left.wait_timeout(clients, rest);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Client>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ClientGuard {
    clients: Arc<Clients>,
    id: u64,
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.clients.lock().remove(&self.id);
        self.clients.left.notify_all();
    }
}
