//! A connection: first in turns with a deadline, then in both directions at once.

mod halves;
mod secure;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};

use crate::socket::Socket;
use crate::tls::{ClientTls, ServerTls, TlsError};
use secure::{Inbox, Layer};

pub use halves::{Receiver, Sender};

/// A connection during the handshake phase: bytes are read and written in turns, and all of it
/// has to be done by a deadline.
#[derive(Debug)]
pub struct Stream {
    socket: Arc<Socket>,
    secured: Option<Secured>,
    deadline: Option<Instant>,
}

/// What a secured connection has besides its socket.
#[derive(Debug)]
struct Secured {
    layer: Arc<Layer>,
    inbox: Inbox,
}

impl Stream {
    /// A connection in the clear, of a `Socket` or an `Arc<Socket>`.
    pub fn plain(socket: impl Into<Arc<Socket>>) -> Self {
        Self { socket: socket.into(), secured: None, deadline: None }
    }

    /// When everything must be done; `None` is never. What is not done by then fails with
    /// `TimedOut`. [`split`](Self::split) forgets it.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// The socket, to shut it down from another thread.
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Whether the connection is secured.
    pub fn is_tls(&self) -> bool {
        self.secured.is_some()
    }

    /// Waits for bytes and returns how many came, 0 at the end of the stream.
    ///
    /// # Errors
    ///
    /// `TimedOut` once the deadline is over; those of recv(2); `InvalidData` if TLS finds something wrong.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (socket, deadline) = (&self.socket, self.deadline);
        let receive = |room: &mut [u8]| receive_by(socket, deadline, room);
        match &mut self.secured {
            None => receive(buffer),
            Some(secured) => secured.layer.receive(socket, &mut secured.inbox, buffer, receive),
        }
    }

    /// Waits for exactly so many bytes; `UnexpectedEof` if the stream ends before.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof`, and those of [`read`](Self::read).
    pub fn read_exact(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read(buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    /// Sends all of the bytes.
    ///
    /// # Errors
    ///
    /// `TimedOut` once the deadline is over, `BrokenPipe` if the peer is gone, and the others of sendmsg(2).
    /// How many bytes were sent is not known then.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let part = [IoSlice::new(bytes)];
            let sent = match &self.secured {
                None => self.socket.try_send(&part),
                Some(secured) => secured.layer.send(&self.socket, &part),
            };
            match sent {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => self.wait_for_room(error)?,
            }
        }
        self.flush()
    }

    fn flush(&self) -> io::Result<()> {
        let Some(secured) = &self.secured else {
            return Ok(());
        };
        while let Err(error) = secured.layer.flush(&self.socket) {
            self.wait_for_room(error)?;
        }
        Ok(())
    }

    /// Waits, if that is what the error of an attempt to send asks for.
    fn wait_for_room(&self, error: io::Error) -> io::Result<()> {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        match self.socket.wait_writable(left(self.deadline)?)? {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Secures the connection as a server, within the deadline.
    ///
    /// Bytes that the caller has read and not consumed by now came in the clear; somebody between
    /// the two ends may have put them there. The caller must refuse such a connection.
    ///
    /// # Errors
    ///
    /// A [`TlsError`]: the peer has no certificate that is trusted, or refuses ours; it speaks no TLS; the
    /// connection fails or the deadline is over.
    pub fn into_tls_server(self, tls: &ServerTls) -> Result<Self, TlsError> {
        let connection = ServerConnection::new(Arc::clone(&tls.config))?;
        self.secure(connection.into())
    }

    /// Secures the connection as a client, within the deadline. The server's certificate has to
    /// be made out to `server_name`, a host name or an IP address.
    ///
    /// Bytes that the caller has read and not consumed by now came in the clear; somebody between
    /// the two ends may have put them there. The caller must refuse such a connection.
    ///
    /// With TLS 1.3 a server looks at our certificate after we are done: what it has against it
    /// is the error of the first [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// [`TlsError::ServerName`] if `server_name` is neither a host name nor an address; otherwise as for
    /// [`into_tls_server`](Self::into_tls_server).
    pub fn into_tls_client(self, tls: &ClientTls, server_name: &str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| TlsError::ServerName(server_name.to_owned()))?;
        let connection = ClientConnection::new(Arc::clone(&tls.config), name)?;
        self.secure(connection.into())
    }

    fn secure(mut self, connection: Connection) -> Result<Self, TlsError> {
        if self.secured.is_some() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is secured already");
            return Err(TlsError::Io(source));
        }
        let layer = Arc::new(Layer::new(connection));
        let secured = self.secured.insert(Secured { layer, inbox: Inbox::new() });
        let layer = Arc::clone(&secured.layer);
        loop {
            self.flush()?;
            if !layer.is_handshaking() {
                return Ok(self);
            }
            self.receive_handshake()?;
        }
    }

    fn receive_handshake(&mut self) -> Result<(), TlsError> {
        let Some(Secured { layer, inbox }) = &mut self.secured else {
            return Ok(());
        };
        if inbox.is_empty() {
            match receive_by(&self.socket, self.deadline, inbox.room())? {
                0 => return Err(TlsError::Closed),
                count => inbox.fill(count),
            }
        }
        layer.shake_hands(&self.socket, inbox)
    }

    /// Goes over to sending and receiving at once.
    pub fn split(self) -> (Receiver, Sender) {
        let (layer, inbox) = match self.secured {
            Some(Secured { layer, inbox }) => (Some(layer), Some(inbox)),
            None => (None, None),
        };
        let receiver = Receiver::new(Arc::clone(&self.socket), layer.clone().zip(inbox));
        (receiver, Sender::new(self.socket, layer))
    }
}

/// The time that is left until the deadline, `None` if there is none.
fn left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    match left {
        Some(Duration::ZERO) => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn receive_by(socket: &Socket, deadline: Option<Instant>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        if !socket.wait_readable(left(deadline)?)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match socket.try_receive(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}
