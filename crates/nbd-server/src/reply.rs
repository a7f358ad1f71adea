//! Replies in the style that the client has negotiated.

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

/// Whom a reply is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) cookie: u64,
    /// The offset of the request; extended replies repeat it.
    pub(crate) offset: u64,
}

/// The longest head of a reply with data: an extended chunk and the data's offset.
pub(crate) const MOST_HEAD: usize = ExtendedReplyChunk::LEN + OffsetData::LEN;

/// Makes replies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replies {
    pub(crate) style: ReplyStyle,
    /// The number of `base:allocation`, if that was negotiated.
    pub(crate) allocation: Option<u32>,
}

impl Replies {
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

    /// What precedes the data of a read, which has at least one byte. `out` has
    /// [`data_head_len`](Self::data_head_len) bytes.
    pub(crate) fn data_head(self, to: Address, length: u32, out: &mut [u8]) {
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

    /// A read of nothing but zeroes; not for simple replies.
    pub(crate) fn hole(self, to: Address, length: u32, out: &mut Vec<u8>) {
        let chunk = self.chunk(to, ReplyType::OFFSET_HOLE, OffsetHole::LEN as u32);
        out.extend_from_slice(chunk.as_slice());
        out.extend_from_slice(&OffsetHole { offset: to.offset, length }.encode());
    }

    /// A request was carried out, and there is no data. `out` has [`done_len`](Self::done_len)
    /// bytes.
    pub(crate) fn done(self, to: Address, out: &mut [u8]) {
        if self.style == ReplyStyle::Simple {
            let reply = SimpleReply { error: NbdError::SUCCESS, cookie: to.cookie };
            out.copy_from_slice(&reply.encode());
            return;
        }
        out.copy_from_slice(self.chunk(to, ReplyType::NONE, 0).as_slice());
    }

    /// A request failed. The words are for people and may be empty.
    pub(crate) fn error(self, to: Address, error: NbdError, words: &str, out: &mut Vec<u8>) {
        if self.style == ReplyStyle::Simple {
            out.extend_from_slice(&SimpleReply { error, cookie: to.cookie }.encode());
            return;
        }
        let payload = ErrorPayload { error, message: words.as_bytes(), offset: None };
        let chunk = self.chunk(to, payload.reply_type(), payload.encoded_len());
        out.extend_from_slice(chunk.as_slice());
        payload.encode_to(out);
    }

    /// A block status; `false` if the client has negotiated none.
    pub(crate) fn extents(self, to: Address, extents: &[Extent], out: &mut Vec<u8>) -> bool {
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
            // The request was for less than 4 GiB, and an answer goes no further.
            let length = u32::try_from(extent.length).unwrap_or(u32::MAX);
            out.extend_from_slice(&ShortExtent { length, flags: allocation(extent) }.encode());
        }
        true
    }

    /// The head of the one and last chunk of a reply.
    fn chunk(self, to: Address, reply_type: ReplyType, length: u32) -> Chunk {
        let Address { cookie, offset } = to;
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

/// Whether data is nothing but zeroes. Most data is found out at its first bytes.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (chunks, rest) = data.as_chunks::<64>();
    let is_zero = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    chunks.iter().all(|chunk| is_zero(chunk)) && is_zero(rest)
}
