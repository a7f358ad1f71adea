//! A client that does what it is told, right or wrong: for tests.

#![allow(clippy::unwrap_used, reason = "all of it is for tests")]

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

/// Only a hang takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client in the transmission phase.
#[derive(Debug)]
pub struct RawClient {
    /// The connection, to break it.
    pub stream: UnixStream,
    /// What was agreed on.
    pub established: Established,
}

/// What a server has answered to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The cookie of the request.
    pub cookie: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out.
    Done,
    /// Data, and where it belongs.
    Data(u64, Vec<u8>),
    /// So many zeroes, and where they belong.
    Hole(u64, u32),
    /// Lengths and flags of extents.
    Extents(Vec<(u64, u64)>),
    /// It was refused or failed, with these words for people.
    Failed(NbdError, String),
}

impl RawClient {
    /// Shakes hands. Panics if the server does not answer at all.
    pub fn shake_hands(
        mut stream: UnixStream,
        wishes: ClientOptions,
    ) -> Result<Self, HandshakeError> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut client = ClientHandshake::new(wishes);
        let (mut input, mut output) = (Vec::new(), Vec::new());
        loop {
            let mut byte = [0];
            // One at a time, so that nothing of what follows is taken.
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

    /// The header of a request, in the style that was agreed on.
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

    /// Waits for an answer. `read` is the length of the read that it is to, or 0: a simple reply
    /// does not tell.
    pub fn answer(&mut self, read: usize) -> Answer {
        self.answer_to(|_| read)
    }

    /// The same, where the cookie tells to what.
    pub fn answer_to(&mut self, read: impl Fn(u64) -> usize) -> Answer {
        match self.established.style {
            ReplyStyle::Simple => {
                let SimpleReply { error, cookie } = SimpleReply::decode(&self.take()).unwrap();
                let read = read(cookie);
                let outcome = match error {
                    NbdError::SUCCESS if read == 0 => Outcome::Done,
                    // It leaves out where the data belongs as well.
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

    /// Waits for the server to close the connection, and returns what it said before.
    pub fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            // That is how a socket closes in which something was not read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => drop(other.unwrap()),
        }
        rest
    }

    /// Waits for the server to close the connection without a further word.
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
