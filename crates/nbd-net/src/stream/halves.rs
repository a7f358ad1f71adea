//! The two halves of a connection, for the transmission phase.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use super::secure::{Inbox, Layer};
use crate::socket::Socket;

/// The receiving half of a connection; one thread uses it.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<Socket>,
    secured: Option<(Arc<Layer>, Inbox)>,
}

/// The sending half of a connection; several threads use it in turns, under a lock of theirs.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<Socket>,
    layer: Option<Arc<Layer>>,
}

impl Receiver {
    pub(super) fn new(socket: Arc<Socket>, secured: Option<(Arc<Layer>, Inbox)>) -> Self {
        Self { socket, secured }
    }

    /// The socket, to shut it down from another thread.
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Whether the connection is secured.
    pub fn is_tls(&self) -> bool {
        self.secured.is_some()
    }

    /// How long [`receive`](Self::receive) waits, `None` for ever.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_receive_timeout(timeout)
    }

    /// Waits for bytes and returns how many came, 0 at the end of the stream; `TimedOut` if the
    /// timeout passes before. A single recv(2) into the buffer if the connection is in the clear.
    ///
    /// A secured connection also ends where the peer closes it without a farewell of TLS: whether
    /// something is missing is for the protocol inside to tell.
    ///
    /// # Errors
    ///
    /// `TimedOut`, those of recv(2), and `InvalidData` if TLS finds something wrong.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let socket = &self.socket;
        match &mut self.secured {
            None => socket.receive(buffer),
            Some((layer, inbox)) => {
                layer.receive(socket, inbox, buffer, |room| socket.receive(room))
            }
        }
    }
}

impl Sender {
    pub(super) fn new(socket: Arc<Socket>, layer: Option<Arc<Layer>>) -> Self {
        Self { socket, layer }
    }

    /// The socket, to wait for room without holding the lock, and to shut it down.
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Whether the connection is secured.
    pub fn is_tls(&self) -> bool {
        self.layer.is_some()
    }

    /// Takes as many bytes as there is room for, at least one, and returns their number;
    /// `WouldBlock` if there is no room. Never waits.
    ///
    /// A secured connection may have taken bytes and not have sent all of them:
    /// [`flush`](Self::flush) tells and sends them.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, `BrokenPipe` if the peer is gone, and the others of sendmsg(2).
    pub fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.layer {
            None => self.socket.try_send(parts),
            Some(layer) => layer.send(&self.socket, parts),
        }
    }

    /// Sends what was taken; `WouldBlock` if something is left. Never waits.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn flush(&mut self) -> io::Result<()> {
        match &self.layer {
            None => Ok(()),
            Some(layer) => layer.flush(&self.socket),
        }
    }

    /// Tells the peer that nothing more comes. `WouldBlock` if there is no room to say so; then
    /// it may be tried again. Receiving goes on.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn close(&mut self) -> io::Result<()> {
        if let Some(layer) = &self.layer {
            layer.close(&self.socket)?;
        }
        self.socket.shutdown_send();
        Ok(())
    }
}
