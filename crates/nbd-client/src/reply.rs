//! What has come of the reply to one request, and whether it may be so. No I/O.

pub(crate) mod header;
pub(crate) mod range_set;

use std::ops::Range;

use nbd_backend::Extent;
use nbd_proto::payload::{
    ALLOCATION_HOLE, ALLOCATION_ZERO, BlockStatus, ErrorPayload, ExtendedBlockStatus, OffsetHole,
};
use nbd_proto::{Command, NbdError, ReplyType};

use crate::error::ProtocolError;
use crate::reply::header::{Chunk, ReplyHeader, ReplyHeaderKind};
use crate::reply::range_set::RangeSet;

/// The longest payload of a chunk without data: a million extents.
const MAX_CHUNK_PAYLOAD_BYTES: u64 = 16 << 20;

/// The state of a reply, some chunks of which may have come.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The request.
    command: Command,
    received: RangeSet,
    error: Option<Failure>,
    extents: Option<Vec<Extent>>,
}

/// A request that the server refused or could not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) error: NbdError,
    /// The server's words, if it had any.
    pub(crate) words: String,
}

/// What follows the header of a chunk on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Nothing,
    /// Data of a read; the range counts from the start of the request.
    Data(Range<u64>),
    /// Something else, for [`Reply::payload`].
    Payload {
        reply_type: ReplyType,
        length: usize,
    },
}

/// What a payload asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplyAction {
    Nothing,
    /// This range of a read is zeroes; it counts from the start of the request.
    Zeroes(Range<u64>),
}

impl Reply {
    pub(crate) fn to(command: Command) -> Self {
        Self { command, received: RangeSet::default(), error: None, extents: None }
    }

    /// Whether nothing has come yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.received.is_empty() && self.error.is_none() && self.extents.is_none()
    }

    /// Takes the header of a chunk or of a simple reply. `is_simple_style` says that nothing else
    /// than simple replies was negotiated.
    pub(crate) fn header(
        &mut self,
        header: &ReplyHeader,
        is_simple_style: bool,
    ) -> Result<Body, ProtocolError> {
        match &header.kind {
            ReplyHeaderKind::Simple(NbdError::SUCCESS) => self.simple(is_simple_style),
            ReplyHeaderKind::Simple(error) => {
                self.fail(*error, "");
                Ok(Body::Nothing)
            }
            ReplyHeaderKind::Chunk(chunk) => self.chunk(chunk),
        }
    }

    fn simple(&mut self, is_simple_style: bool) -> Result<Body, ProtocolError> {
        match self.command {
            Command::Read { length, .. } if is_simple_style => {
                let range = 0..u64::from(length);
                let _ = self.received.add(range.clone());
                Ok(Body::Data(range))
            }
            Command::Read { .. } | Command::BlockStatus { .. } => {
                Err(ProtocolError::SimpleSuccess(self.command.command_type()))
            }
            _ => Ok(Body::Nothing),
        }
    }

    fn chunk(&mut self, chunk: &Chunk) -> Result<Body, ProtocolError> {
        let Chunk { is_last, reply_type, length, .. } = *chunk;
        let (offset, _) = self.command.range();
        if let Some(found) = chunk.request_offset
            && found != offset
        {
            return Err(ProtocolError::OtherOffset { found, offset });
        }
        let is_read = matches!(self.command, Command::Read { .. });
        let is_status = matches!(self.command, Command::BlockStatus { .. });
        match (reply_type, chunk.data_offset) {
            (ReplyType::NONE, _) if length == 0 && is_last => Ok(Body::Nothing),
            (ReplyType::OFFSET_DATA, Some(at)) if is_read => self.cover(at, length).map(Body::Data),
            (ReplyType::OFFSET_HOLE, _) if is_read && length == OffsetHole::LEN as u64 => {
                Ok(Body::Payload { reply_type, length: OffsetHole::LEN })
            }
            (ReplyType::BLOCK_STATUS, _) if is_status && chunk.request_offset.is_none() => {
                payload_len(reply_type, length)
            }
            (ReplyType::BLOCK_STATUS_EXT, _) if is_status && chunk.request_offset.is_some() => {
                payload_len(reply_type, length)
            }
            (reply_type, _) if reply_type.is_error() => payload_len(reply_type, length),
            (ReplyType::NONE | ReplyType::OFFSET_HOLE, _) => {
                Err(ProtocolError::Payload(reply_type))
            }
            _ => Err(ProtocolError::Chunk { found: reply_type, to: self.command.command_type() }),
        }
    }

    /// Takes the payload of a chunk that is no data. `allocation` is the number of
    /// `base:allocation`.
    pub(crate) fn payload(
        &mut self,
        reply_type: ReplyType,
        payload: &[u8],
        allocation: Option<u32>,
    ) -> Result<ReplyAction, ProtocolError> {
        let malformed = |_| ProtocolError::Payload(reply_type);
        match reply_type {
            ReplyType::OFFSET_HOLE => {
                let bytes = payload.first_chunk().ok_or(ProtocolError::Payload(reply_type))?;
                let OffsetHole { offset, length } = OffsetHole::decode(bytes);
                return self.cover(offset, u64::from(length)).map(ReplyAction::Zeroes);
            }
            ReplyType::BLOCK_STATUS => {
                let status = BlockStatus::parse(payload).map_err(malformed)?;
                let extents = status.extents();
                let extents = extents.map(|it| (u64::from(it.length), u64::from(it.flags)));
                self.status(status.context(), extents, allocation)?;
            }
            ReplyType::BLOCK_STATUS_EXT => {
                let status = ExtendedBlockStatus::parse(payload).map_err(malformed)?;
                let extents = status.extents().map(|extent| (extent.length, extent.flags));
                self.status(status.context(), extents, allocation)?;
            }
            _ => {
                let failure = ErrorPayload::parse(reply_type, payload).map_err(malformed)?;
                self.fail(failure.error, &String::from_utf8_lossy(failure.message));
            }
        }
        Ok(ReplyAction::Nothing)
    }

    /// The result, once the last chunk has come: extents for a block status, nothing otherwise.
    pub(crate) fn finish(&mut self) -> Result<Result<Vec<Extent>, Failure>, ProtocolError> {
        if let Some(failure) = self.error.take() {
            return Ok(Err(failure));
        }
        match (self.command, self.extents.take()) {
            (Command::Read { length, .. }, _) if !self.received.is_whole(u64::from(length)) => {
                Err(ProtocolError::ShortData { length })
            }
            (Command::BlockStatus { .. }, None) => Err(ProtocolError::NoStatus),
            (_, extents) => Ok(Ok(extents.unwrap_or_default())),
        }
    }

    /// Only the first error of a reply counts.
    fn fail(&mut self, error: NbdError, words: &str) {
        self.error.get_or_insert_with(|| Failure { error, words: words.into() });
    }

    /// Where content belongs that the server places at `offset` of the export.
    fn cover(&mut self, offset: u64, length: u64) -> Result<Range<u64>, ProtocolError> {
        let (start, wanted) = self.command.range();
        let outside = ProtocolError::Outside { offset, length };
        let at = offset.checked_sub(start).ok_or(outside)?;
        if length == 0 || length > wanted || at > wanted - length {
            return Err(ProtocolError::Outside { offset, length });
        }
        let range = at..at + length;
        if !self.received.add(range.clone()) {
            return Err(ProtocolError::Twice { offset, length });
        }
        Ok(range)
    }

    /// A server may describe more than was asked for; that is cut off.
    fn status(
        &mut self,
        context: u32,
        extents: impl Iterator<Item = (u64, u64)>,
        allocation: Option<u32>,
    ) -> Result<(), ProtocolError> {
        if allocation != Some(context) || self.extents.is_some() {
            return Err(ProtocolError::Context(context));
        }
        let (_, mut left) = self.command.range();
        let mut known = Vec::new();
        for (length, flags) in extents {
            let length = length.min(left);
            if length == 0 {
                break;
            }
            left -= length;
            let has = |flag: u32| flags & u64::from(flag) != 0;
            known.push(Extent { length, hole: has(ALLOCATION_HOLE), zero: has(ALLOCATION_ZERO) });
            if matches!(self.command, Command::BlockStatus { one: true, .. }) {
                break;
            }
        }
        self.extents = Some(known);
        Ok(())
    }
}

fn payload_len(reply_type: ReplyType, length: u64) -> Result<Body, ProtocolError> {
    if length == 0 || length > MAX_CHUNK_PAYLOAD_BYTES {
        return Err(ProtocolError::Payload(reply_type));
    }
    Ok(Body::Payload { reply_type, length: length as usize })
}
