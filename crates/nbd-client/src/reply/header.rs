//! The header of a reply as it stands in the stream, in whichever style was negotiated.

use nbd_proto::handshake::ReplyStyle;
use nbd_proto::payload::OffsetData;
use nbd_proto::{
    ExtendedReplyChunk, NbdError, ReplyFlags, ReplyKind, ReplyType, SimpleReply,
    StructuredReplyChunk,
};

use crate::error::ProtocolError;

/// The header of a simple reply or of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyHeader {
    pub(crate) cookie: u64,
    pub(crate) kind: ReplyHeaderKind,
    /// Its length on the wire, in bytes.
    pub(crate) len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyHeaderKind {
    Simple(NbdError),
    Chunk(Chunk),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) is_last: bool,
    pub(crate) reply_type: ReplyType,
    /// Bytes of payload behind the header; without [`Self::data_offset`], which is taken as a part
    /// of the header.
    pub(crate) length: u64,
    /// Where data belongs, in bytes from the start of the export.
    pub(crate) data_offset: Option<u64>,
    /// The request's offset, which extended replies repeat.
    pub(crate) request_offset: Option<u64>,
}

/// What the bytes at hand come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Header(ReplyHeader),
    /// The header has so many bytes, and they are not all there.
    More(usize),
}

impl ReplyHeader {
    /// Reads the header of the next reply.
    pub(crate) fn parse(bytes: &[u8], style: ReplyStyle) -> Result<Parsed, ProtocolError> {
        let Some(magic) = bytes.first_chunk() else {
            return Ok(Parsed::More(SimpleReply::LEN));
        };
        let kind = ReplyKind::of(magic)?;
        let fits = match kind {
            // Errors may come in this form from servers that agreed on another.
            ReplyKind::Simple => style != ReplyStyle::Extended,
            ReplyKind::Structured => style == ReplyStyle::Structured,
            ReplyKind::Extended => style == ReplyStyle::Extended,
        };
        if !fits {
            return Err(ProtocolError::Style { found: kind, negotiated: style });
        }
        let (cookie, chunk) = match kind {
            ReplyKind::Simple => {
                let Some(bytes) = bytes.first_chunk() else {
                    return Ok(Parsed::More(SimpleReply::LEN));
                };
                let SimpleReply { error, cookie } = SimpleReply::decode(bytes)?;
                let kind = ReplyHeaderKind::Simple(error);
                return Ok(Parsed::Header(Self { cookie, kind, len: SimpleReply::LEN }));
            }
            ReplyKind::Structured => {
                let Some(bytes) = bytes.first_chunk() else {
                    return Ok(Parsed::More(StructuredReplyChunk::LEN));
                };
                structured(StructuredReplyChunk::decode(bytes)?)
            }
            ReplyKind::Extended => {
                let Some(bytes) = bytes.first_chunk() else {
                    return Ok(Parsed::More(ExtendedReplyChunk::LEN));
                };
                extended(ExtendedReplyChunk::decode(bytes)?)
            }
        };
        with_offset(bytes, cookie, chunk, kind.header_len())
    }
}

fn structured(chunk: StructuredReplyChunk) -> (u64, Chunk) {
    let StructuredReplyChunk { flags, reply_type, cookie, length } = chunk;
    let is_last = flags.contains(ReplyFlags::DONE);
    let length = u64::from(length);
    (cookie, Chunk { is_last, reply_type, length, data_offset: None, request_offset: None })
}

fn extended(chunk: ExtendedReplyChunk) -> (u64, Chunk) {
    let ExtendedReplyChunk { flags, reply_type, cookie, offset, length } = chunk;
    let is_last = flags.contains(ReplyFlags::DONE);
    let request_offset = Some(offset);
    (cookie, Chunk { is_last, reply_type, length, data_offset: None, request_offset })
}

/// Takes the offset in front of data into the header, so that what follows is data only.
fn with_offset(
    bytes: &[u8],
    cookie: u64,
    mut chunk: Chunk,
    mut len: usize,
) -> Result<Parsed, ProtocolError> {
    if chunk.reply_type == ReplyType::OFFSET_DATA {
        let Some(data) = chunk.length.checked_sub(OffsetData::LEN as u64) else {
            return Err(ProtocolError::Payload(chunk.reply_type));
        };
        let Some(offset) = bytes.get(len..).and_then(|rest| rest.first_chunk()) else {
            return Ok(Parsed::More(len + OffsetData::LEN));
        };
        chunk.length = data;
        chunk.data_offset = Some(OffsetData::decode(offset).offset);
        len += OffsetData::LEN;
    }
    Ok(Parsed::Header(ReplyHeader { cookie, kind: ReplyHeaderKind::Chunk(chunk), len }))
}
