//! Waiting for the next connection, wherever it comes from.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{SocketFlags, accept_with};

use super::ListenError;
use super::source::{Listener, Source};
use crate::address::{Address, Listen};
use crate::socket::Socket;

/// Pause after the system lacked something; it may have it again when a client has left.
const PAUSE: u16 = 100;
/// A lasting lack is worth a line as often as this.
const REMINDER: Duration = Duration::from_secs(60);

/// Several sources of connections.
#[derive(Debug)]
pub struct Listeners {
    listeners: Vec<Listener>,
    /// Where to look first, so that a busy source does not keep others waiting.
    turn: AtomicUsize,
    last_complaint: Mutex<Option<Instant>>,
}

impl Listeners {
    /// Accepts from all of these.
    pub fn new(listeners: Vec<Listener>) -> Self {
        Self { listeners, turn: AtomicUsize::new(0), last_complaint: Mutex::new(None) }
    }

    /// Listens in all of these places, see [`Listener::bind`].
    ///
    /// # Errors
    ///
    /// Those of [`Listener::bind`] for the first place where it fails; listeners made before are closed.
    pub fn bind(listens: &[Listen]) -> Result<Self, ListenError> {
        let mut listeners = Vec::new();
        for listen in listens {
            listeners.extend(Listener::bind(listen)?);
        }
        Ok(Self::new(listeners))
    }

    /// Where clients connect to.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().filter_map(Listener::address).collect()
    }

    /// The next connection. `None` when `stop` is readable, or when no more connections can come
    /// because there were only single ones.
    ///
    /// A lack of descriptors or memory is waited out, with a line on stderr; what fails with a
    /// single connection is ignored.
    ///
    /// # Errors
    ///
    /// Those of poll(2) and accept(2) that are neither a lack nor the fault of a single connection.
    pub fn accept(&self, stop: BorrowedFd<'_>) -> io::Result<Option<Socket>> {
        if let Some(socket) = self.listeners.iter().find_map(Listener::take_connection) {
            return Ok(Some(socket));
        }
        let sources: Vec<&OwnedFd> = self.listeners.iter().filter_map(listening).collect();
        if sources.is_empty() {
            return Ok(None);
        }
        loop {
            let Some(ready) = wait(&sources, stop)? else {
                return Ok(None);
            };
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % ready.len();
            match accept_with(ready[turn], SocketFlags::CLOEXEC).map_err(io::Error::from) {
                // It may be gone already, and is of no interest then.
                Ok(fd) => match Socket::from_fd(fd) {
                    Ok(socket) => return Ok(Some(socket)),
                    Err(_) => continue,
                },
                Err(error) => {
                    if self.consider(error)? && is_readable_within(stop, PAUSE.into())? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Whether to pause after this error; or it is one that never ends.
    pub(super) fn consider(&self, error: io::Error) -> io::Result<bool> {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(false),
            Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK) | None => Err(error),
            // What else comes is a lack, or the network's error for the connection that was to be
            // accepted. To pause does no harm then, and is a must if the error comes for ever.
            Some(_) => {
                let mut last = self.last_complaint.lock().unwrap_or_else(PoisonError::into_inner);
                if last.is_none_or(|time| time.elapsed() >= REMINDER) {
                    *last = Some(Instant::now());
                    tracing::warn!("cannot accept connections at the moment: {error}");
                }
                Ok(true)
            }
        }
    }
}

fn listening(listener: &Listener) -> Option<&OwnedFd> {
    match &listener.source {
        Source::Many(fd) => Some(fd),
        Source::One(_) => None,
    }
}

/// The sources where somebody waits, at least one. `None` if it is time to stop.
fn wait<'a>(sources: &[&'a OwnedFd], stop: BorrowedFd<'_>) -> io::Result<Option<Vec<&'a OwnedFd>>> {
    let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut entries: Vec<PollFd<'_>> = sources.iter().map(|fd| entry(fd.as_fd())).collect();
    entries.push(entry(stop));
    loop {
        match poll(&mut entries, PollTimeout::NONE) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut is_ready = entries.iter().map(|entry| entry.any().unwrap_or(true));
    let ready = sources.iter().filter(|_| is_ready.next() == Some(true)).copied().collect();
    Ok((is_ready.next() == Some(false)).then_some(ready))
}

pub(super) fn is_readable_within(fd: BorrowedFd<'_>, timeout: PollTimeout) -> io::Result<bool> {
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
