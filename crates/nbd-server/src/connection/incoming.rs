//! Receiving, and the memory for what comes: where a connection waits for its client and for its turn.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nbd_net::liveness;

use super::{Connection, ConnectionError};
use crate::inbox::{Inbox, Lack};
use crate::memory::Grant;

impl Connection {
    pub(super) fn receive(
        &self,
        inbox: &mut Inbox,
        length: usize,
    ) -> Result<usize, ConnectionError> {
        if inbox.is_too_slow(self.limits.stall) && self.memory.is_wanted() {
            return Err(ConnectionError::Stalled);
        }
        self.hear(inbox, |inbox| {
            self.make_room(inbox, length);
            inbox.receive(length)
        })
    }

    /// Receives once, however long that takes. Returns 0 at the end of the stream.
    pub(super) fn hear(
        &self,
        inbox: &mut Inbox,
        mut receive: impl FnMut(&mut Inbox) -> io::Result<usize>,
    ) -> Result<usize, ConnectionError> {
        let mut silent = Duration::ZERO;
        loop {
            match receive(inbox) {
                Ok(count) => return Ok(count),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        silent += inbox.timeout();
                        self.bear_with(inbox, &mut silent)?;
                    }
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => return Ok(0),
                    _ => return Err(ConnectionError::Receive(error)),
                },
            }
        }
    }

    /// Whether to go on with a client that has been silent for so long.
    fn bear_with(&self, inbox: &Inbox, silent: &mut Duration) -> Result<(), ConnectionError> {
        if liveness::is_gone(self.socket.as_fd(), self.limits.vanished) {
            return Err(ConnectionError::Vanished);
        }
        if inbox.holds_memory() && !inbox.bytes().is_empty() && self.memory.is_wanted() {
            return Err(ConnectionError::Stalled);
        }
        if self.lock().outbox.outstanding > 0 {
            // A client that waits for us is not idle.
            *silent = Duration::ZERO;
        }
        match self.limits.idle {
            Some(idle) if *silent >= idle => Err(ConnectionError::Idle),
            _ => Ok(()),
        }
    }

    /// Reads a payload that nobody wants; its request was refused.
    pub(super) fn skip(&self, inbox: &mut Inbox, length: u64) -> Result<(), ConnectionError> {
        let mut left = length;
        while left > 0 {
            let here = inbox.bytes().len().min(usize::try_from(left).unwrap_or(usize::MAX));
            inbox.consume(here);
            left -= here as u64;
            if left > 0 && self.receive(inbox, 1)? == 0 {
                return Err(self.torn());
            }
        }
        Ok(())
    }

    /// Waits for memory, and has none meanwhile but what tasks and replies under way take up.
    pub(super) fn reserve(&self, inbox: &mut Inbox, bytes: u64) -> Grant {
        while inbox.let_go().is_err() {
            self.finish_all();
        }
        self.memory.take(bytes)
    }

    /// Sees to it that more of a message of this length can be received.
    fn make_room(&self, inbox: &mut Inbox, length: usize) {
        while let Err(lack) = inbox.make_room(length) {
            match lack {
                Lack::Turn => self.finish_all(),
                Lack::Memory(bytes) => inbox.grow(self.memory.take(bytes as u64), bytes),
            }
        }
    }

    /// Waits until no request is worked on.
    fn finish_all(&self) {
        drop(self.wait_until(|outbox| outbox.outstanding == 0));
    }
}
