//! Encoding replies in the style that was negotiated.

use nbd_backend::Extent;
use nbd_proto::handshake::ReplyStyle;
use nbd_proto::payload::Extent as ShortExtent;
use nbd_proto::payload::{
    ALLOCATION_HOLE, ALLOCATION_ZERO, BlockStatusHead, ErrorPayload, ExtendedBlockStatusHead,
    ExtendedExtent, OffsetData, OffsetHole,
};
use nbd_proto::{
    ExtendedReplyChunk, NbdError, ReplyFlags, ReplyType, SimpleReply, StructuredReplyChunk,
};

/// The request that a reply answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyTarget {
    pub(crate) cookie: u64,
    /// Offset of the request in bytes; extended replies repeat it.
    pub(crate) offset: u64,
}

/// The longest header of a reply with data, in bytes: an extended chunk and the data's offset.
pub(crate) const MAX_DATA_HEADER_LEN: usize = ExtendedReplyChunk::LEN + OffsetData::LEN;

/// Encodes replies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyEncoder {
    pub(crate) style: ReplyStyle,
    /// The id of the context `base:allocation`, if that was negotiated.
    pub(crate) allocation: Option<u32>,
}

impl ReplyEncoder {
    /// Bytes of a reply without data.
    pub(crate) fn done_len(self) -> usize {
        match self.style {
            ReplyStyle::Simple => SimpleReply::LEN,
            ReplyStyle::Structured => StructuredReplyChunk::LEN,
            ReplyStyle::Extended => ExtendedReplyChunk::LEN,
        }
    }

    /// Bytes before the data of a read.
    pub(crate) fn data_head_len(self) -> usize {
        self.done_len() + if self.style == ReplyStyle::Simple { 0 } else { OffsetData::LEN }
    }

    /// Whether a read of zeroes can be answered without sending them.
    pub(crate) fn has_holes(self) -> bool {
        self.style != ReplyStyle::Simple
    }

    /// The header before the data of a read of at least one byte. `out` has
    /// [`data_head_len`](Self::data_head_len) bytes.
    pub(crate) fn data_head(self, to: ReplyTarget, length: u32, out: &mut [u8]) {
        if self.style == ReplyStyle::Simple {
            let reply = SimpleReply { error: NbdError::SUCCESS, cookie: to.cookie };
            out.copy_from_slice(&reply.encode());
            return;
        }
        let chunk = self.chunk(to, ReplyType::OFFSET_DATA, OffsetData::LEN as u32 + length);
        let (head, offset) = out.split_at_mut(chunk.as_slice().len());
        head.copy_from_slice(chunk.as_slice());
        offset.copy_from_slice(&OffsetData { offset: to.offset }.encode());
    }

    /// A read of zeroes only; not for simple replies.
    pub(crate) fn hole(self, to: ReplyTarget, length: u32, out: &mut Vec<u8>) {
        let chunk = self.chunk(to, ReplyType::OFFSET_HOLE, OffsetHole::LEN as u32);
        out.extend_from_slice(chunk.as_slice());
        out.extend_from_slice(&OffsetHole { offset: to.offset, length }.encode());
    }

    /// Success without data. `out` has [`done_len`](Self::done_len)
    /// bytes.
    pub(crate) fn done(self, to: ReplyTarget, out: &mut [u8]) {
        if self.style == ReplyStyle::Simple {
            let reply = SimpleReply { error: NbdError::SUCCESS, cookie: to.cookie };
            out.copy_from_slice(&reply.encode());
            return;
        }
        out.copy_from_slice(self.chunk(to, ReplyType::NONE, 0).as_slice());
    }

    /// An error. The message may be empty; simple replies cannot carry one.
    pub(crate) fn error(self, to: ReplyTarget, error: NbdError, message: &str, out: &mut Vec<u8>) {
        if self.style == ReplyStyle::Simple {
            out.extend_from_slice(&SimpleReply { error, cookie: to.cookie }.encode());
            return;
        }
        let payload = ErrorPayload { error, message: message.as_bytes(), offset: None };
        let chunk = self.chunk(to, payload.reply_type(), payload.encoded_len());
        out.extend_from_slice(chunk.as_slice());
        payload.encode_to(out);
    }

    /// A block status; `false` if the client has negotiated none.
    pub(crate) fn extents(self, to: ReplyTarget, extents: &[Extent], out: &mut Vec<u8>) -> bool {
        let Some(context) = self.allocation else {
            return false;
        };
        let count = extents.len() as u32;
        if self.style == ReplyStyle::Extended {
            let length = ExtendedBlockStatusHead::LEN + extents.len() * ExtendedExtent::LEN;
            let chunk = self.chunk(to, ReplyType::BLOCK_STATUS_EXT, length as u32);
            out.extend_from_slice(chunk.as_slice());
            out.extend_from_slice(&ExtendedBlockStatusHead { context, count }.encode());
            for extent in extents {
                let flags = u64::from(allocation(extent));
                out.extend_from_slice(&ExtendedExtent { length: extent.length, flags }.encode());
            }
            return true;
        }
        let length = BlockStatusHead::LEN + extents.len() * ShortExtent::LEN;
        let chunk = self.chunk(to, ReplyType::BLOCK_STATUS, length as u32);
        out.extend_from_slice(chunk.as_slice());
        out.extend_from_slice(&BlockStatusHead { context }.encode());
        for extent in extents {
            // A request with this header is shorter than 4 GiB, and no extent is longer than that.
            let length = u32::try_from(extent.length).unwrap_or(u32::MAX);
            out.extend_from_slice(&ShortExtent { length, flags: allocation(extent) }.encode());
        }
        true
    }

    /// The header of a chunk. Each reply is one chunk, so it has the flag DONE.
    fn chunk(self, to: ReplyTarget, reply_type: ReplyType, length: u32) -> Chunk {
        let ReplyTarget { cookie, offset } = to;
        let flags = ReplyFlags::DONE;
        if self.style == ReplyStyle::Extended {
            let length = u64::from(length);
            let chunk = ExtendedReplyChunk { flags, reply_type, cookie, offset, length };
            Chunk::Extended(chunk.encode())
        } else {
            let chunk = StructuredReplyChunk { flags, reply_type, cookie, length };
            Chunk::Structured(chunk.encode())
        }
    }
}

fn allocation(extent: &Extent) -> u32 {
    let when = |set, flag| if set { flag } else { 0 };
    when(extent.hole, ALLOCATION_HOLE) | when(extent.zero, ALLOCATION_ZERO)
}

enum Chunk {
    Structured([u8; StructuredReplyChunk::LEN]),
    Extended([u8; ExtendedReplyChunk::LEN]),
}

impl Chunk {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Structured(bytes) => bytes,
            Self::Extended(bytes) => bytes,
        }
    }
}

/// Whether data is zeroes only. Checks pieces of 64 bytes, so most other data costs one piece.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (chunks, rest) = data.as_chunks::<64>();
    let is_zero = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    chunks.iter().all(|chunk| is_zero(chunk)) && is_zero(rest)
}
