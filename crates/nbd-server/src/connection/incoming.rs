//! Receiving, and memory to receive into: where a connection waits for its client, and for memory
//! that other connections use.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nbd_net::liveness;

use super::shared::{Connection, ConnectionError};
use crate::memory_budget::Grant;
use crate::recv_buffer::{Blocked, RecvBuffer};

impl Connection {
    pub(super) fn receive(
        &self,
        recv_buffer: &mut RecvBuffer,
        length: usize,
    ) -> Result<usize, ConnectionError> {
        if recv_buffer.is_too_slow(self.limits.stall) && self.memory.has_waiters() {
            return Err(ConnectionError::TooSlow);
        }
        self.receive_with_timeouts(recv_buffer, |recv_buffer| {
            self.make_room(recv_buffer, length)?;
            recv_buffer.receive(length)
        })
    }

    /// Receives once, and waits as long as the timeouts allow. Returns 0 at the end of the stream.
    pub(super) fn receive_with_timeouts(
        &self,
        recv_buffer: &mut RecvBuffer,
        mut receive: impl FnMut(&mut RecvBuffer) -> io::Result<usize>,
    ) -> Result<usize, ConnectionError> {
        let mut silent = Duration::ZERO;
        loop {
            match receive(recv_buffer) {
                Ok(count) => return Ok(count),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        silent += recv_buffer.timeout();
                        self.check_timeouts(recv_buffer, &mut silent)?;
                    }
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => return Ok(0),
                    _ => return Err(ConnectionError::Receive(error)),
                },
            }
        }
    }

    /// Fails if the client was silent for longer than a limit allows.
    fn check_timeouts(
        &self,
        recv_buffer: &RecvBuffer,
        silent: &mut Duration,
    ) -> Result<(), ConnectionError> {
        if liveness::is_gone(self.socket.as_fd(), self.limits.vanished) {
            return Err(ConnectionError::PeerVanished);
        }
        if recv_buffer.holds_memory()
            && !recv_buffer.bytes().is_empty()
            && self.memory.has_waiters()
        {
            return Err(ConnectionError::TooSlow);
        }
        if self.lock().send_buffer.outstanding > 0 {
            // A client that waits for a reply is not idle.
            *silent = Duration::ZERO;
        }
        match self.limits.idle {
            Some(idle) if *silent >= idle => Err(ConnectionError::Idle),
            _ => Ok(()),
        }
    }

    /// Discards the payload of a request that was refused.
    pub(super) fn skip(
        &self,
        recv_buffer: &mut RecvBuffer,
        length: u64,
    ) -> Result<(), ConnectionError> {
        let mut left = length;
        while left > 0 {
            let here = recv_buffer.bytes().len().min(usize::try_from(left).unwrap_or(usize::MAX));
            recv_buffer.consume(here);
            left -= here as u64;
            if left > 0 && self.receive(recv_buffer, 1)? == 0 {
                return Err(self.unexpected_eof());
            }
        }
        Ok(())
    }

    /// Waits for a grant of common memory, `None` if the client has disconnected meanwhile. Releases
    /// the receive buffer's share before: a connection that holds memory and waits for more could
    /// deadlock with another one that does the same.
    pub(super) fn wait_for_grant(&self, recv_buffer: &mut RecvBuffer, bytes: u64) -> Option<Grant> {
        while recv_buffer.release_shared().is_err() {
            self.wait_for_tasks();
        }
        self.memory.take(bytes, || self.has_disconnected())
    }

    /// Makes room in the receive buffer for a message of this length. Waits as long as that takes,
    /// also if the client is gone: all of a write, and NBD_CMD_DISC after it, may be in the socket.
    /// Fails if the server has hung up on the client: nothing more is begun for it.
    fn make_room(&self, recv_buffer: &mut RecvBuffer, length: usize) -> io::Result<()> {
        // The first of these also gives back the memory of its reads if it is gone.
        let look_after_client = || self.has_disconnected() && self.lock().send_buffer.is_hung_up();
        let hung_up = || Err(io::ErrorKind::UnexpectedEof.into());
        while let Err(blocked) = recv_buffer.make_room(length) {
            match blocked {
                Blocked::TasksPending => self.wait_for_tasks(),
                Blocked::NeedsMemory(bytes) => {
                    let Some(grant) = self.memory.begin(bytes as u64, look_after_client) else {
                        return hung_up();
                    };
                    recv_buffer.begin_long(grant, bytes);
                }
                // It keeps what it has: bytes that came cannot be given back. The memory budget
                // argues why that blocks no one for ever.
                Blocked::NeedsStep => {
                    if !recv_buffer.wait_for_step(look_after_client) {
                        return hung_up();
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits until no worker has a request of this connection.
    fn wait_for_tasks(&self) {
        drop(self.wait_until(|send_buffer| send_buffer.outstanding == 0));
    }
}
