//! What every command needs: the registry, the terminal, and a way to hear of Ctrl-C.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nbd_control::registry::Registry;
use nbd_control::text::printable;
use nbd_control::{Channel, ChannelError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::Error;

/// Shared by all that a command does.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) registry: Registry,
    /// Readable for ever once SIGINT or SIGTERM has come: no code reads from it.
    interrupted: UnixStream,
    /// Its other end, which must stay open.
    _signalled: UnixStream,
}

/// What came of waiting.
#[derive(Debug)]
pub(crate) enum Received<T> {
    Message(T),
    Nothing,
    Interrupt,
}

impl Context {
    /// From here on SIGINT and SIGTERM no longer end the program, but each wait.
    pub(crate) fn new(directory: Option<PathBuf>) -> Result<Self, Error> {
        let registry = Registry::new(directory);
        // Holders may be started in another directory than ours.
        let directory = std::path::absolute(registry.directory()).map_err(|source| {
            let path = registry.directory().to_path_buf();
            Error::Registry { path, source }
        })?;
        let (interrupted, signalled) = UnixStream::pair().map_err(Error::Signals)?;
        for signal in [SIGINT, SIGTERM] {
            let writer = signalled.try_clone().map_err(Error::Signals)?;
            signal_hook::low_level::pipe::register(signal, writer).map_err(Error::Signals)?;
        }
        Ok(Self { registry: Registry::new(Some(directory)), interrupted, _signalled: signalled })
    }

    /// The same for what must be done although Ctrl-C has come.
    pub(crate) fn without_interrupts(&self) -> Result<Self, Error> {
        let (interrupted, signalled) = UnixStream::pair().map_err(Error::Signals)?;
        Ok(Self { registry: self.registry.clone(), interrupted, _signalled: signalled })
    }

    /// Waits up to `limit` for the next message.
    pub(crate) fn receive<T: DeserializeOwned>(
        &self,
        channel: &mut Channel,
        limit: Duration,
    ) -> Result<Received<T>, ChannelError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(received) = channel.try_receive()? {
                return Ok(Received::Message(received.message));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Received::Nothing);
            }
            let mut descriptors = [
                PollFd::new(channel.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.interrupted.as_fd(), PollFlags::POLLIN),
            ];
            wait_for(&mut descriptors, left)?;
            let [peer, interrupt] = descriptors;
            // What the peer had to say comes first.
            if interrupt.any() == Some(true) && peer.any() != Some(true) {
                return Ok(Received::Interrupt);
            }
        }
    }

    /// Waits until there is something to take; false if Ctrl-C came.
    pub(crate) fn wait_for_input(&self, from: BorrowedFd<'_>) -> bool {
        loop {
            let mut descriptors = [
                PollFd::new(self.interrupted.as_fd(), PollFlags::POLLIN),
                PollFd::new(from, PollFlags::POLLIN),
            ];
            if wait_for(&mut descriptors, Duration::from_secs(3600)).is_err()
                || descriptors[0].any() == Some(true)
            {
                return false;
            }
            if descriptors[1].any() == Some(true) {
                return true;
            }
        }
    }

    /// Sleeps; false if Ctrl-C came.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let mut descriptors = [PollFd::new(self.interrupted.as_fd(), PollFlags::POLLIN)];
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            if wait_for(&mut descriptors, left).is_err() || descriptors[0].any() == Some(true) {
                return false;
            }
        }
    }
}

fn wait_for(descriptors: &mut [PollFd<'_>], time: Duration) -> Result<(), ChannelError> {
    let time = time + Duration::from_millis(1);
    match poll(descriptors, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Words for the operator. A failure to write them cannot be told anywhere, so it is ignored.
pub(crate) fn eprint(text: &str) {
    let text = printable(text, &['\n']);
    let _ = writeln!(io::stderr().lock(), "nbd-ctl: {text}");
}

/// Something that only a person who is watching wants to know.
pub(crate) fn progress(text: &str) {
    if io::stderr().is_terminal() {
        eprint(text);
    }
}

/// Data. A reader that has seen enough is no failure.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}
