//! Accepting clients, a thread for each, and stopping without dropping what is under way.

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
use crate::memory::Memory;
use crate::session::{self, Client, Context};

/// A server: some exports, and the clients that use them.
#[derive(Debug)]
pub struct Server {
    context: Arc<Context>,
    clients: Arc<Clients>,
}

/// Whether and how connections are secured.
#[derive(Debug, Default)]
pub enum Security {
    /// They are not.
    #[default]
    None,
    /// Clients may ask for it.
    Optional(ServerTls),
    /// Clients must ask for it.
    Required(ServerTls),
}

impl Server {
    /// A server that listens to nobody yet.
    pub fn new(exports: Vec<Export>, security: Security, limits: Limits) -> Self {
        let (policy, tls) = match security {
            Security::None => (TlsPolicy::Off, None),
            Security::Optional(tls) => (TlsPolicy::Optional, Some(tls)),
            Security::Required(tls) => (TlsPolicy::Required, Some(tls)),
        };
        let list = exports.into_iter().map(Arc::new).collect();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let exports = Exports { list, limits };
        let memory = Memory::new(limits.memory);
        let context = Arc::new(Context { exports, memory, tls, policy, is_stopping });
        Self { context, clients: Arc::default() }
    }

    /// Serves whoever connects, until `stop` becomes readable: then nobody is let in any more,
    /// what is under way is finished, and all connections are closed, after [`Limits::grace`] at
    /// the latest. Returns earlier if no more clients can come and the last one has left.
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
            clients.each(|client| client.socket.shutdown_receive());
            if !clients.wait(Some(context.exports.limits.grace)) {
                clients.hang_up();
            }
        })?;
        self.clients.wait(None);
        Ok(())
    }

    fn admit(&self, socket: Socket) {
        let most = self.context.exports.limits.connections;
        let peer = socket.peer();
        let client = Arc::new(Client::new(socket));
        let Some(guard) = self.clients.enter(Arc::clone(&client), most) else {
            tracing::warn!("{peer}: turned away: {most} clients are connected");
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

/// How long the threads of clients may take to notice that these were left, in case nothing of
/// theirs is stuck ...
const LAST_MOMENT: Duration = Duration::from_millis(500);
/// ... and how often that is tried.
const HANG_UP_INTERVAL: Duration = Duration::from_millis(20);

/// The connected clients.
#[derive(Debug, Default)]
struct Clients {
    list: Mutex<HashMap<u64, Arc<Client>>>,
    left: Condvar,
    next: AtomicU64,
    /// What is still under way is not waited for any more.
    is_abandoned: AtomicBool,
}

impl Clients {
    /// Registers a client for as long as the guard lives; `None` if there are too many.
    fn enter(self: &Arc<Self>, client: Arc<Client>, most: usize) -> Option<Guard> {
        let mut clients = self.lock();
        if clients.len() >= most {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        clients.insert(id, client);
        Some(Guard { clients: Arc::clone(self), id })
    }

    fn each(&self, act: impl Fn(&Client)) {
        for client in self.lock().values() {
            act(client);
        }
    }

    /// Leaves all clients. Storage that does not answer must not keep the server from ending; the
    /// connections of those whose requests are stuck end with them, or with the process.
    fn hang_up(&self) {
        let deadline = Instant::now() + LAST_MOMENT;
        loop {
            self.each(Client::try_hang_up);
            if self.wait(Some(HANG_UP_INTERVAL)) {
                return;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        self.each(|client| {
            tracing::warn!("{}: requests are stuck and are abandoned", client.socket.peer());
        });
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.left.notify_all();
    }

    /// Waits until all have left or are abandoned; `false` if that takes longer than the limit.
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

struct Guard {
    clients: Arc<Clients>,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.clients.lock().remove(&self.id);
        self.clients.left.notify_all();
    }
}
