//! A unix stream between two of our processes.
//!
//! Each side first sends a greeting: [`GREETING`] and [`VERSION`] as a little-endian u32. After
//! that come frames: the payload's length and the number of descriptors that belong to it, both
//! little-endian u32, then the payload ([`wire`]). The descriptors travel as
//! SCM_RIGHTS with the first byte of their frame.
//!
//! No byte of a later frame is taken from the socket before its turn, so `poll(2)` tells of it.

mod ancillary;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::wire;
use ancillary::Peeked;
pub use ancillary::Sender;

/// First bytes of either direction.
pub const GREETING: [u8; 8] = *b"nbd-hold";
/// Version of all messages in this crate. Any change to one of them raises it. A new kind of message, the last of
/// its enum, does not: programs that do not know it end the connection.
pub const VERSION: u32 = 1;
/// Most descriptors with one frame.
pub const MAX_FRAME_DESCRIPTORS: usize = 32;

const GREETING_BYTES: usize = 12;
const FRAME_HEADER_BYTES: usize = 8;
/// Most that is read at once.
const READ_BYTES: usize = 16384;
/// How long a peer may not read what it is sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// What a socket holds for a peer that is slow: more than the longest message takes there.
const SEND_BUFFER_BYTES: usize = 2 * wire::MAX_MESSAGE_BYTES;

/// Why a conversation ended.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The peer has closed; nothing was under way.
    #[error("the peer has closed the connection")]
    Closed,
    /// No complete message came in time.
    #[error("no answer within {:.1} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The peer leaves what it was sent unread, and there is no room for more.
    #[error("the peer does not read its messages")]
    Unread,
    /// The peer is not one of our programs.
    #[error("the peer does not speak our protocol (it sent {0:02x?})")]
    NotOurs(Vec<u8>),
    /// The peer is one of our programs, of another version.
    #[error(
        "the peer speaks version {found} of the protocol and this program version {VERSION}; use programs of one release"
    )]
    Version {
        /// The peer's version.
        found: u32,
    },
    /// Descriptors came where none may.
    #[error("the peer sends descriptors, which it must not")]
    Descriptors,
    /// A frame cannot be what it claims to be.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// A system call failed.
    #[error("connection failed")]
    System(#[from] io::Error),
}

impl From<nix::Error> for ChannelError {
    fn from(errno: nix::Error) -> Self {
        Self::System(errno.into())
    }
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    /// What has come of the greeting, and then of the frame that is being received.
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    greeted: bool,
    sender: Option<Sender>,
    identifies_senders: bool,
    max_descriptors: usize,
    /// Sending waits for a peer that does not read, up to [`SEND_TIMEOUT`].
    waits: bool,
}

/// A received message and what came with it.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Wraps a connected stream and sends our greeting. The stream may block or not: receiving
    /// never waits, but in [`Self::receive_within`].
    ///
    /// # Errors
    ///
    /// The greeting cannot be sent: the peer reads nothing for a second, or a system call failed. A peer that has
    /// closed is no error: what it sent before can still be received.
    pub fn new(stream: UnixStream) -> Result<Self, ChannelError> {
        let mut greeting = GREETING.to_vec();
        greeting.extend_from_slice(&VERSION.to_le_bytes());
        match send_all(&stream, &greeting, &[], true) {
            // A peer that is gone may have left its last words, which are still to be read.
            Ok(()) | Err(ChannelError::Closed) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { greeted: false, ..Self::resume(stream) })
    }

    /// Goes on with a conversation that another program of this process had begun and that was
    /// [at rest](Self::is_at_rest).
    #[must_use]
    pub fn resume(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            descriptors: Vec::new(),
            greeted: true,
            sender: None,
            identifies_senders: false,
            max_descriptors: MAX_FRAME_DESCRIPTORS,
            waits: true,
        }
    }

    /// How many descriptors may come with a message, at most [`MAX_FRAME_DESCRIPTORS`]. With 0 none gets into this
    /// process: to close one can take as long as its sender likes.
    pub fn set_max_descriptors(&mut self, count: usize) {
        self.max_descriptors = count.min(MAX_FRAME_DESCRIPTORS);
    }

    /// From now on the peer cannot make us wait: one that has not read what it was sent before is given up, and no
    /// byte gets past the others (`MSG_OOB`), with what comes along.
    ///
    /// # Errors
    ///
    /// The kernel refuses an option.
    pub fn never_wait(&mut self) -> Result<(), ChannelError> {
        // Only root is given more than the usual.
        setsockopt(&self.stream, sockopt::SndBufForce, &SEND_BUFFER_BYTES)
            .or_else(|_| setsockopt(&self.stream, sockopt::SndBuf, &SEND_BUFFER_BYTES))?;
        setsockopt(&self.stream, sockopt::OobInline, &true)?;
        self.waits = false;
        Ok(())
    }

    /// Drops what is unread, up to the first byte that comes with descriptors, and at most 1 MiB. Returns whether
    /// all of it is dropped.
    #[must_use]
    pub fn drop_unread(&mut self) -> bool {
        let mut buffer = [0u8; READ_BYTES];
        for _ in 0..wire::MAX_MESSAGE_BYTES / READ_BYTES {
            let received = match ancillary::peek(self.stream.as_fd(), &mut buffer) {
                Ok(Peeked::Bytes(0)) => return true,
                Ok(Peeked::Bytes(count)) => {
                    ancillary::receive(self.stream.as_fd(), &mut buffer[..count], false)
                }
                Ok(Peeked::Descriptors) => return false,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            };
            if received.is_err() {
                return false;
            }
        }
        false
    }

    /// The stream, and the descriptors of a message that has not come whole.
    #[must_use]
    pub fn into_parts(self) -> (UnixStream, Vec<OwnedFd>) {
        (self.stream, self.descriptors)
    }

    /// Whether the peer has introduced itself and no message is half received.
    pub fn is_at_rest(&self) -> bool {
        self.greeted && self.bytes.is_empty() && self.descriptors.is_empty()
    }

    /// Asks the kernel to vouch for the sender of every message from now on.
    ///
    /// # Errors
    ///
    /// The kernel refuses the option: the stream is no unix socket.
    pub fn identify_senders(&mut self) -> Result<(), ChannelError> {
        setsockopt(&self.stream, sockopt::PassCred, &true)?;
        self.identifies_senders = true;
        Ok(())
    }

    /// The sender of the last bytes received, as the kernel saw it.
    pub fn sender(&self) -> Option<&Sender> {
        self.sender.as_ref()
    }

    /// Sends a message. It either goes out whole or the channel is of no more use.
    ///
    /// # Errors
    ///
    /// The peer has closed, or does not read; the message is longer than
    /// [`wire::MAX_MESSAGE_BYTES`]; a system call failed.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let payload = wire::encode(message).map_err(ChannelError::Malformed)?;
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
        frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        frame.extend_from_slice(&(descriptors.len() as u32).to_le_bytes());
        frame.extend_from_slice(&payload);
        send_all(&self.stream, &frame, descriptors, self.waits)
    }

    /// The next message, if all of it is here. Never waits.
    ///
    /// # Errors
    ///
    /// The peer has closed, is of another version or none of our programs, or has sent what is no such message; a
    /// system call failed.
    pub fn try_receive<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<Received<T>>, ChannelError> {
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                return self.take_frame().map(Some);
            }
            match self.fill(missing) {
                Ok(()) => {}
                Err(ChannelError::System(error)) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset => return Err(ChannelError::Closed),
                    _ => return Err(error.into()),
                },
                Err(other) => return Err(other),
            }
        }
    }

    /// The next message, waiting for it up to `limit`.
    ///
    /// # Errors
    ///
    /// As [`Self::try_receive`], and [`ChannelError::TimedOut`] after `limit`.
    pub fn receive_within<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
    ) -> Result<Received<T>, ChannelError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(received) = self.try_receive()? {
                return Ok(received);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ChannelError::TimedOut(limit));
            }
            let timeout =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next message, waiting for it as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Self::try_receive`].
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Received<T>, ChannelError> {
        loop {
            match self.receive_within(Duration::from_secs(3600)) {
                Err(ChannelError::TimedOut(_)) => {}
                other => return other,
            }
        }
    }

    /// How many bytes have to come next, for the greeting, the header of a frame or all of it; 0 if it is here.
    fn missing(&mut self) -> Result<usize, ChannelError> {
        if !self.greeted {
            let missing = self.check_greeting()?;
            if missing > 0 {
                return Ok(missing);
            }
        }
        let missing = match self.header()? {
            None => FRAME_HEADER_BYTES - self.bytes.len(),
            Some((length, _)) => FRAME_HEADER_BYTES + length - self.bytes.len(),
        };
        Ok(missing)
    }

    /// Length of the payload and number of descriptors.
    fn header(&self) -> Result<Option<(usize, usize)>, ChannelError> {
        let Some(header) = self.bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (length, count) = (word(0) as usize, word(4) as usize);
        if length > wire::MAX_MESSAGE_BYTES || count > self.max_descriptors {
            return Err(ChannelError::Malformed(format!("{length} bytes, {count} descriptors")));
        }
        if self.descriptors.len() != count {
            let come = self.descriptors.len();
            return Err(ChannelError::Malformed(format!("{come} of {count} descriptors")));
        }
        Ok(Some((length, count)))
    }

    fn take_frame<T: DeserializeOwned>(&mut self) -> Result<Received<T>, ChannelError> {
        let message =
            wire::decode(&self.bytes[FRAME_HEADER_BYTES..]).map_err(ChannelError::Malformed)?;
        self.bytes.clear();
        Ok(Received { message, descriptors: std::mem::take(&mut self.descriptors) })
    }

    /// Takes the greeting when all of it is here; otherwise how much is missing.
    fn check_greeting(&mut self) -> Result<usize, ChannelError> {
        let known = self.bytes.len().min(GREETING.len());
        if self.bytes[..known] != GREETING[..known] {
            return Err(ChannelError::NotOurs(self.bytes.clone()));
        }
        let Some(greeting) = self.bytes.first_chunk::<GREETING_BYTES>() else {
            return Ok(GREETING_BYTES - self.bytes.len());
        };
        let found = u32::from_le_bytes([greeting[8], greeting[9], greeting[10], greeting[11]]);
        if found != VERSION {
            return Err(ChannelError::Version { found });
        }
        self.bytes.clear();
        self.greeted = true;
        Ok(0)
    }

    /// Receives at most `wanted` bytes, without waiting.
    fn fill(&mut self, wanted: usize) -> Result<(), ChannelError> {
        let mut buffer = [0u8; READ_BYTES];
        let mut buffer = &mut buffer[..wanted.min(READ_BYTES)];
        if self.max_descriptors == 0 {
            match ancillary::peek(self.stream.as_fd(), buffer)? {
                Peeked::Descriptors => return Err(ChannelError::Descriptors),
                Peeked::Bytes(0) => return Err(ChannelError::Closed),
                // No more than was looked at: a descriptor may have come behind that.
                Peeked::Bytes(count) => buffer = &mut buffer[..count],
            }
        }
        let (count, ancillary) =
            ancillary::receive(self.stream.as_fd(), buffer, self.identifies_senders)?;
        self.descriptors.extend(ancillary.descriptors);
        if ancillary.is_cut {
            return Err(ChannelError::Malformed("there is no room for its descriptors".into()));
        }
        if self.descriptors.len() > self.max_descriptors {
            let count = self.descriptors.len();
            return Err(ChannelError::Malformed(format!("{count} descriptors")));
        }
        if count == 0 {
            return Err(ChannelError::Closed);
        }
        self.sender = ancillary.sender.or(self.sender.take());
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Sends all bytes, with the descriptors at the first one. A peer that lets the socket's buffer fill up is
/// given up, if we wait after [`SEND_TIMEOUT`].
fn send_all(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    waits: bool,
) -> Result<(), ChannelError> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let mut sent = 0;
    while sent < bytes.len() {
        let with: &[_] = if sent == 0 && !raw.is_empty() { &rights } else { &[] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes[sent..])], with, flags, None)
        {
            Ok(count) => sent += count,
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => {
                let timeout = PollTimeout::try_from(SEND_TIMEOUT).unwrap_or(PollTimeout::MAX);
                let mut socket = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                if !waits || poll(&mut socket, timeout)? == 0 {
                    return Err(ChannelError::Unread);
                }
            }
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(ChannelError::Closed),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
