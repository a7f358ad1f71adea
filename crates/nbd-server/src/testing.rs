//! A client for tests, which sends valid and invalid requests.
//!
//! All methods panic if the connection fails or the server sends something invalid.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "all of it is for tests")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_proto::handshake::{
    ClientHandshake, ClientOptions, ClientProgress, Established, HandshakeError, ReplyStyle,
};
use nbd_proto::payload::{BlockStatus, ErrorPayload, ExtendedBlockStatus, OffsetData, OffsetHole};
use nbd_proto::{
    CommandFlags, CommandType, ExtendedReplyChunk, ExtendedRequest, NbdError, ReplyFlags,
    ReplyType, Request, SimpleReply, StructuredReplyChunk,
};

/// How long a read or write of the socket may take before a test fails.
const IO_TIMEOUT: Duration = Duration::from_secs(60);

/// A client in the transmission phase.
#[derive(Debug)]
pub struct RawClient {
    /// The connection; a test may break it.
    pub stream: UnixStream,
    /// What was negotiated.
    pub established: Established,
}

/// A server's reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The cookie of the request.
    pub cookie: u64,
    /// The result.
    pub outcome: Outcome,
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success without data.
    Done,
    /// The offset and the data.
    Data(u64, Vec<u8>),
    /// Offset and length of a range of zeroes.
    Hole(u64, u32),
    /// Lengths and flags of extents.
    Extents(Vec<(u64, u64)>),
    /// An error and its message.
    Failed(NbdError, String),
}

impl RawClient {
    /// Does the handshake.
    ///
    /// # Errors
    ///
    /// If the server refuses what `wishes` asks for, or breaks the protocol.
    pub fn shake_hands(
        mut stream: UnixStream,
        wishes: ClientOptions,
    ) -> Result<Self, HandshakeError> {
        stream.set_read_timeout(Some(IO_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(IO_TIMEOUT)).unwrap();
        let mut client = ClientHandshake::new(wishes);
        let (mut input, mut output) = (Vec::new(), Vec::new());
        loop {
            let mut byte = [0];
            // One byte at a time, so that no byte after the handshake is consumed.
            stream.read_exact(&mut byte).unwrap();
            input.extend(byte);
            let (used, progress) = client.handle(&input, &mut output)?;
            input.drain(..used);
            stream.write_all(&output).unwrap();
            output.clear();
            if let ClientProgress::Established(established) = progress {
                return Ok(Self { stream, established });
            }
        }
    }

    /// The header of a request, in the style that was negotiated.
    pub fn request(
        &self,
        command: CommandType,
        flags: CommandFlags,
        cookie: u64,
        offset: u64,
        length: u64,
    ) -> Vec<u8> {
        if self.established.style == ReplyStyle::Extended {
            return ExtendedRequest { flags, command, cookie, offset, length }.encode().into();
        }
        let length = u32::try_from(length).unwrap();
        Request { flags, command, cookie, offset, length }.encode().into()
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends a request without data.
    pub fn ask(&mut self, command: CommandType, cookie: u64, offset: u64, length: u64) {
        let request = self.request(command, CommandFlags::NONE, cookie, offset, length);
        self.send(&request);
    }

    /// Sends a write.
    pub fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        let message = self.write_message(cookie, offset, data);
        self.send(&message);
    }

    /// A write with its data.
    pub fn write_message(&self, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
        let flags = match self.established.style {
            ReplyStyle::Extended => CommandFlags::PAYLOAD_LEN,
            _ => CommandFlags::NONE,
        };
        let length = data.len() as u64;
        let request = self.request(CommandType::WRITE, flags, cookie, offset, length);
        [&request, data].concat()
    }

    /// Waits for a reply. `read` is the length of the read that it answers, or 0: a simple reply
    /// does not contain the length.
    pub fn answer(&mut self, read: usize) -> Answer {
        self.answer_to(|_| read)
    }

    /// Waits for a reply; `read` returns the length for a cookie.
    pub fn answer_to(&mut self, read: impl Fn(u64) -> usize) -> Answer {
        match self.established.style {
            ReplyStyle::Simple => {
                let SimpleReply { error, cookie } = SimpleReply::decode(&self.take()).unwrap();
                let read = read(cookie);
                let outcome = match error {
                    NbdError::SUCCESS if read == 0 => Outcome::Done,
                    // A simple reply does not contain the offset either.
                    NbdError::SUCCESS => Outcome::Data(0, self.take_all(read)),
                    error => Outcome::Failed(error, String::new()),
                };
                Answer { cookie, outcome }
            }
            ReplyStyle::Structured => {
                let chunk = StructuredReplyChunk::decode(&self.take()).unwrap();
                let StructuredReplyChunk { flags, reply_type, cookie, length } = chunk;
                assert_eq!(flags, ReplyFlags::DONE);
                let payload = self.take_all(length as usize);
                Answer { cookie, outcome: outcome(reply_type, &payload) }
            }
            ReplyStyle::Extended => {
                let chunk = ExtendedReplyChunk::decode(&self.take()).unwrap();
                let ExtendedReplyChunk { flags, reply_type, cookie, length, .. } = chunk;
                assert_eq!(flags, ReplyFlags::DONE);
                let payload = self.take_all(length as usize);
                Answer { cookie, outcome: outcome(reply_type, &payload) }
            }
        }
    }

    /// Sends a request without data and waits for its answer.
    pub fn call(&mut self, command: CommandType, offset: u64, length: u64) -> Outcome {
        self.ask(command, 77, offset, length);
        let read = if command == CommandType::READ { length as usize } else { 0 };
        let answer = self.answer(read);
        assert_eq!(answer.cookie, 77);
        answer.outcome
    }

    /// Waits for the server to close the connection, and returns the bytes before the end.
    pub fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            // The server closed a socket with unread data.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => drop(other.unwrap()),
        }
        rest
    }

    /// Waits for the server to close the connection, and fails if it sends anything before.
    pub fn expect_end(self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "{} bytes before the end: {:?}", rest.len(), rest.get(..64));
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn take_all(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}

fn outcome(reply_type: ReplyType, payload: &[u8]) -> Outcome {
    match reply_type {
        ReplyType::NONE => Outcome::Done,
        ReplyType::OFFSET_DATA => {
            let (head, data) = payload.split_first_chunk().unwrap();
            Outcome::Data(OffsetData::decode(head).offset, data.into())
        }
        ReplyType::OFFSET_HOLE => {
            let OffsetHole { offset, length } = OffsetHole::decode(payload.try_into().unwrap());
            Outcome::Hole(offset, length)
        }
        ReplyType::BLOCK_STATUS => {
            let extents = BlockStatus::parse(payload).unwrap().extents();
            Outcome::Extents(extents.map(|at| (at.length.into(), at.flags.into())).collect())
        }
        ReplyType::BLOCK_STATUS_EXT => {
            let extents = ExtendedBlockStatus::parse(payload).unwrap().extents();
            Outcome::Extents(extents.map(|extent| (extent.length, extent.flags)).collect())
        }
        error => {
            let payload = ErrorPayload::parse(error, payload).unwrap();
            let words = String::from_utf8(payload.message.into()).unwrap();
            Outcome::Failed(payload.error, words)
        }
    }
}
