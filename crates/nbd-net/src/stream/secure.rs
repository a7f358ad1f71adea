//! The TLS layer of a connection, shared by its two halves.
//!
//! Nobody waits for the network while holding the layer's lock: ciphertext is received without
//! it, and sent without waiting.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::Connection;

use crate::socket::Socket;
use crate::tls::TlsError;

/// Ciphertext that is received at once, in bytes.
const INBOX: usize = 128 << 10;
/// Plaintext that is taken while nothing is pending, in bytes.
const OUTBOX: usize = 256 << 10;

/// Received ciphertext.
pub(super) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; INBOX].into(), start: 0, end: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where to receive to, once it is empty; [`fill`](Self::fill) tells how much came.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    pub(super) fn fill(&mut self, count: usize) {
        (self.start, self.end) = (0, count);
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("unread", &(self.end - self.start)).finish_non_exhaustive()
    }
}

impl Read for Inbox {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.buffer[self.start..self.end]).read(buffer)?;
        self.start += count;
        Ok(count)
    }
}

/// A socket as rustls wants it.
struct Outgoing<'a>(&'a Socket);

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_send(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_send(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Layer {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    /// The peer has broken the protocol: nothing of it can be trusted any more.
    failure: Option<rustls::Error>,
    is_closed: bool,
}

/// What a look at the received ciphertext gives.
enum Step {
    Plaintext(usize),
    NeedsMore,
    End,
}

impl Layer {
    pub(super) fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(OUTBOX));
        Self { state: Mutex::new(State { connection, failure: None, is_closed: false }) }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.lock().connection.is_handshaking()
    }

    /// Takes note of a part of the inbox, which is not empty.
    pub(super) fn shake_hands(&self, socket: &Socket, inbox: &mut Inbox) -> Result<(), TlsError> {
        let mut state = self.lock();
        state.connection.read_tls(inbox)?;
        state.process(socket).map_err(TlsError::from)
    }

    /// Decrypts what came. `receive` waits for more, where that is not a single byte.
    pub(super) fn receive(
        &self,
        socket: &Socket,
        inbox: &mut Inbox,
        buffer: &mut [u8],
        mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut total = 0;
        while total < buffer.len() {
            // The lock is given away after each step, for the sake of those who send.
            let step = self.lock().step(socket, inbox, &mut buffer[total..]);
            match step {
                Ok(Step::Plaintext(count)) => total += count,
                // An error comes again, when it is its turn.
                _ if total > 0 => return Ok(total),
                Ok(Step::End) => return Ok(0),
                Ok(Step::NeedsMore) => match receive(inbox.room())? {
                    // Without a farewell, but that is of no interest to NBD, which has its own.
                    0 => return Ok(0),
                    count => inbox.fill(count),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    /// Encrypts as much as is to be pending at a time, if nothing is.
    pub(super) fn send(&self, socket: &Socket, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.check()?;
        state.flush(socket)?;
        let taken = state.connection.writer().write_vectored(parts)?;
        match state.flush(socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    pub(super) fn flush(&self, socket: &Socket) -> io::Result<()> {
        self.lock().flush(socket)
    }

    /// Sends what is pending and a farewell behind it.
    pub(super) fn close(&self, socket: &Socket) -> io::Result<()> {
        let mut state = self.lock();
        if !state.is_closed {
            state.connection.send_close_notify();
            state.is_closed = true;
        }
        state.flush(socket)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn step(&mut self, socket: &Socket, inbox: &mut Inbox, buffer: &mut [u8]) -> io::Result<Step> {
        loop {
            match self.connection.reader().read(buffer) {
                Ok(0) => return Ok(Step::End),
                Ok(count) => return Ok(Step::Plaintext(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.check()?;
            if inbox.is_empty() {
                return Ok(Step::NeedsMore);
            }
            self.connection.read_tls(inbox)?;
            // What came before the offence is still to be had.
            let _ = self.process(socket);
        }
    }

    /// Decrypts, and sends what TLS itself has to say to that. What does not fit goes ahead of
    /// what is sent next.
    fn process(&mut self, socket: &Socket) -> Result<(), rustls::Error> {
        let processed = self.connection.process_new_packets();
        let _ = self.flush(socket);
        if let Err(error) = processed {
            self.failure = Some(error.clone());
            return Err(error);
        }
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        self.failure.clone().map_or(Ok(()), |error| Err(broken(error)))
    }

    fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut Outgoing(socket))?;
        }
        Ok(())
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
