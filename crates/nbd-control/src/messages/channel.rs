//! A unix stream between two of our processes.
//!
//! Each side first sends a greeting: [`GREETING`] and [`VERSION`] as a little-endian u32. After
//! that come frames: the payload's length and the number of descriptors that belong to it, both
//! little-endian u32, then the payload ([`wire`]). The descriptors travel as
//! SCM_RIGHTS with the first byte of their frame.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::wire;

/// First bytes of either direction.
pub const GREETING: [u8; 8] = *b"nbd-hold";
/// Version of all messages in this crate. Any change to one of them raises it.
pub const VERSION: u32 = 1;
/// Most descriptors with one frame.
pub const MAX_FRAME_DESCRIPTORS: usize = 32;

const GREETING_BYTES: usize = 12;
const FRAME_HEADER_BYTES: usize = 8;

/// Why a conversation ended.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The peer has closed; nothing was under way.
    #[error("the peer has closed the connection")]
    Closed,
    /// No complete message came in time.
    #[error("no answer within {:.1} s", .0.as_secs_f64())]
    TimedOut(Duration),
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
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    greeted: bool,
    sender: Option<UnixCredentials>,
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
        match send_all(&stream, &greeting, &[]) {
            // A peer that is gone may have left its last words, which are still to be read.
            Ok(()) | Err(ChannelError::Closed) => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            stream,
            bytes: Vec::new(),
            descriptors: VecDeque::new(),
            greeted: false,
            sender: None,
        })
    }

    /// Goes on with a conversation that another program of this process had begun and that was
    /// [at rest](Self::is_at_rest).
    #[must_use]
    pub fn resume(stream: UnixStream) -> Self {
        let (bytes, descriptors) = (Vec::new(), VecDeque::new());
        Self { stream, bytes, descriptors, greeted: true, sender: None }
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
    pub fn identify_senders(&self) -> Result<(), ChannelError> {
        Ok(setsockopt(&self.stream, sockopt::PassCred, &true)?)
    }

    /// Process, user and group of the sender of the last bytes received, as the kernel saw them.
    pub fn sender(&self) -> Option<UnixCredentials> {
        self.sender
    }

    /// Sends a message. It either goes out whole or the channel is of no more use.
    ///
    /// # Errors
    ///
    /// The peer has closed, or reads nothing for a second; the message is longer than
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
        send_all(&self.stream, &frame, descriptors)
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
            if let Some(received) = self.next_frame()? {
                return Ok(Some(received));
            }
            match self.fill() {
                Ok(()) => {}
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ECONNRESET | nix::Error::EPIPE) => {
                    return Err(ChannelError::Closed);
                }
                Err(errno) => return Err(errno.into()),
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

    fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<Received<T>>, ChannelError> {
        if !self.greeted && !self.check_greeting()? {
            return Ok(None);
        }
        let Some(header) = self.bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (length, count) = (word(0) as usize, word(4) as usize);
        if length > wire::MAX_MESSAGE_BYTES || count > MAX_FRAME_DESCRIPTORS {
            return Err(ChannelError::Malformed(format!("{length} bytes, {count} descriptors")));
        }
        if self.bytes.len() < FRAME_HEADER_BYTES + length {
            return Ok(None);
        }
        if self.descriptors.len() < count {
            return Err(ChannelError::Malformed("descriptors are missing".into()));
        }
        let message = wire::decode(&self.bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length])
            .map_err(ChannelError::Malformed)?;
        self.bytes.drain(..FRAME_HEADER_BYTES + length);
        let descriptors = self.descriptors.drain(..count).collect();
        Ok(Some(Received { message, descriptors }))
    }

    fn check_greeting(&mut self) -> Result<bool, ChannelError> {
        let known = self.bytes.len().min(GREETING.len());
        if self.bytes[..known] != GREETING[..known] {
            let shown = self.bytes.len().min(16);
            return Err(ChannelError::NotOurs(self.bytes[..shown].to_vec()));
        }
        let Some(greeting) = self.bytes.first_chunk::<GREETING_BYTES>() else {
            return Ok(false);
        };
        let found = u32::from_le_bytes([greeting[8], greeting[9], greeting[10], greeting[11]]);
        if found != VERSION {
            return Err(ChannelError::Version { found });
        }
        self.bytes.drain(..GREETING_BYTES);
        self.greeted = true;
        Ok(true)
    }

    fn fill(&mut self) -> nix::Result<()> {
        let mut buffer = [0u8; 16384];
        let mut space = nix::cmsg_space!([RawFd; MAX_FRAME_DESCRIPTORS], UnixCredentials);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = self.stream.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut slices, Some(&mut space), flags)?;
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::ScmRights(raw) => self.descriptors.extend(adopt(raw)),
                ControlMessageOwned::ScmCredentials(sender) => self.sender = Some(sender),
                _ => {}
            }
        }
        let count = message.bytes;
        if count == 0 {
            return Err(nix::Error::EPIPE);
        }
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Makes received descriptors ours, so that none leaks whatever follows.
#[allow(unsafe_code)]
fn adopt(raw: Vec<RawFd>) -> Vec<OwnedFd> {
    raw.into_iter()
        .map(|fd| {
            // SAFETY: the kernel has just installed this descriptor in our table for this
            // message, and nobody else knows its number.
            unsafe { OwnedFd::from_raw_fd(fd) }
        })
        .collect()
}

/// Sends all bytes, with the descriptors at the first one. Messages are small against a socket's
/// buffer; a peer that lets it fill up is given a second.
fn send_all(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
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
                let timeout = PollTimeout::from(1000u16);
                if poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], timeout)? == 0 {
                    return Err(ChannelError::TimedOut(Duration::from_secs(1)));
                }
            }
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(ChannelError::Closed),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (left, right) = UnixStream::pair().unwrap();
        (Channel::new(left).unwrap(), Channel::new(right).unwrap())
    }

    /// Longer than any message takes.
    const MESSAGE_TIMEOUT: Duration = Duration::from_secs(120);

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (left, mut right) = pair();
        let (mut reader, writer) = std::io::pipe().unwrap();
        left.send(&("lane".to_string(), 7u32), &[writer.as_fd()]).unwrap();
        drop(writer);
        let received = right.receive_within::<(String, u32)>(MESSAGE_TIMEOUT).unwrap();
        assert_eq!(received.message, ("lane".to_string(), 7));
        std::fs::File::from(received.descriptors.into_iter().next().unwrap())
            .write_all(b"x")
            .unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn messages_in_pieces_are_put_together() {
        let (left, mut right) = pair();
        left.send(&vec![1u8; 5000], &[]).unwrap();
        left.send(&vec![2u8; 100_000], &[]).unwrap();
        assert_eq!(
            right.receive_within::<Vec<u8>>(MESSAGE_TIMEOUT).unwrap().message,
            vec![1; 5000]
        );
        assert_eq!(
            right.receive_within::<Vec<u8>>(MESSAGE_TIMEOUT).unwrap().message.len(),
            100_000
        );
        assert!(right.try_receive::<Vec<u8>>().unwrap().is_none());
    }

    #[test]
    fn a_conversation_goes_on_where_it_was_left_at_rest() {
        let (left, mut right) = pair();
        assert!(!right.is_at_rest(), "nobody has introduced themselves");
        left.send(&1u32, &[]).unwrap();
        left.send(&2u32, &[]).unwrap();
        assert_eq!(right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 1);
        assert!(!right.is_at_rest(), "the second message is here");
        assert_eq!(right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 2);
        assert!(right.is_at_rest());

        let (mut left, right) = (Channel::resume(left.stream), Channel::resume(right.stream));
        right.send(&3u32, &[]).unwrap();
        // Its greeting was not read before.
        left.greeted = false;
        assert_eq!(left.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 3);
    }

    #[test]
    fn garbage_instead_of_a_greeting_is_named() {
        let (mut left, right) = UnixStream::pair().unwrap();
        let mut right = Channel::new(right).unwrap();
        left.write_all(b"GET / HTTP/1.0\r\n").unwrap();
        let error = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
        assert!(matches!(error, ChannelError::NotOurs(_)), "{error}");
    }

    #[test]
    fn another_version_is_named() {
        let (mut left, right) = UnixStream::pair().unwrap();
        let mut right = Channel::new(right).unwrap();
        left.write_all(b"nbd-hold\x63\0\0\0").unwrap();
        let error = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
        assert!(matches!(error, ChannelError::Version { found: 99 }), "{error}");
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused() {
        let (mut left, right) = UnixStream::pair().unwrap();
        let mut right = Channel::new(right).unwrap();
        left.write_all(b"nbd-hold\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0").unwrap();
        let error = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
        assert!(matches!(error, ChannelError::Malformed(_)), "{error}");
    }

    #[test]
    fn a_closed_peer_is_told_from_a_silent_one() {
        let (left, mut right) = pair();
        let silent = right.receive_within::<u32>(Duration::from_millis(1)).unwrap_err();
        assert!(matches!(silent, ChannelError::TimedOut(_)), "{silent}");
        drop(left);
        let closed = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
        assert!(matches!(closed, ChannelError::Closed), "{closed}");
    }

    #[test]
    fn the_kernel_names_the_sender() {
        let (left, mut right) = pair();
        right.identify_senders().unwrap();
        left.send(&1u32, &[]).unwrap();
        right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap();
        assert_eq!(right.sender().unwrap().pid(), std::process::id() as i32);
    }
}
