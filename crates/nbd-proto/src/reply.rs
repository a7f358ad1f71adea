//! The headers a server sends.

use crate::field::{get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use crate::magic::{self, WrongMagic};
use crate::{NbdError, ReplyFlags, ReplyType};

/// A simple reply, 16 bytes (specification: "Simple reply message").
///
/// The data of a read follows it on the wire if, and only if, the error is
/// [`NbdError::SUCCESS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SimpleReply {
    /// How the request ended.
    pub error: NbdError,
    /// The cookie of the request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 16;

    /// The message as it goes on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut message = [0; Self::LEN];
        put_u32(&mut message, 0, magic::SIMPLE_REPLY);
        put_u32(&mut message, 4, self.error.0);
        put_u64(&mut message, 8, self.cookie);
        message
    }

    /// Reads a message; any content is accepted behind the right magic number.
    ///
    /// # Errors
    ///
    /// [`WrongMagic`] if the first bytes are another number than the magic.
    pub const fn decode(message: &[u8; Self::LEN]) -> Result<Self, WrongMagic> {
        if let Err(wrong) = magic::expect(get_u32(message, 0), magic::SIMPLE_REPLY) {
            return Err(wrong);
        }
        Ok(Self { error: NbdError(get_u32(message, 4)), cookie: get_u64(message, 8) })
    }
}

/// The header of a structured reply chunk, 20 bytes (specification: "Structured reply chunk
/// message"). Its payload is described in [`payload`](crate::payload).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StructuredReplyChunk {
    /// Whether more chunks of the same reply follow.
    pub flags: ReplyFlags,
    /// What the payload is.
    pub reply_type: ReplyType,
    /// The cookie of the request.
    pub cookie: u64,
    /// Length of the payload behind the header, in bytes.
    pub length: u32,
}

impl StructuredReplyChunk {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 20;

    /// The message as it goes on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut message = [0; Self::LEN];
        put_u32(&mut message, 0, magic::STRUCTURED_REPLY);
        put_u16(&mut message, 4, self.flags.bits());
        put_u16(&mut message, 6, self.reply_type.0);
        put_u64(&mut message, 8, self.cookie);
        put_u32(&mut message, 16, self.length);
        message
    }

    /// Reads a message; any content is accepted behind the right magic number.
    ///
    /// # Errors
    ///
    /// [`WrongMagic`] if the first bytes are another number than the magic.
    pub const fn decode(message: &[u8; Self::LEN]) -> Result<Self, WrongMagic> {
        if let Err(wrong) = magic::expect(get_u32(message, 0), magic::STRUCTURED_REPLY) {
            return Err(wrong);
        }
        Ok(Self {
            flags: ReplyFlags::from_bits(get_u16(message, 4)),
            reply_type: ReplyType(get_u16(message, 6)),
            cookie: get_u64(message, 8),
            length: get_u32(message, 16),
        })
    }
}

/// The header of an extended reply chunk, 32 bytes (specification, branch
/// `extension-ext-header`: "Extended reply chunk message").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtendedReplyChunk {
    /// Whether more chunks of the same reply follow.
    pub flags: ReplyFlags,
    /// What the payload is.
    pub reply_type: ReplyType,
    /// The cookie of the request.
    pub cookie: u64,
    /// The offset of the request, in bytes; not that of the payload.
    pub offset: u64,
    /// Length of the payload behind the header, in bytes.
    pub length: u64,
}

impl ExtendedReplyChunk {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 32;

    /// The message as it goes on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut message = [0; Self::LEN];
        put_u32(&mut message, 0, magic::EXTENDED_REPLY);
        put_u16(&mut message, 4, self.flags.bits());
        put_u16(&mut message, 6, self.reply_type.0);
        put_u64(&mut message, 8, self.cookie);
        put_u64(&mut message, 16, self.offset);
        put_u64(&mut message, 24, self.length);
        message
    }

    /// Reads a message; any content is accepted behind the right magic number.
    ///
    /// # Errors
    ///
    /// [`WrongMagic`] if the first bytes are another number than the magic.
    pub const fn decode(message: &[u8; Self::LEN]) -> Result<Self, WrongMagic> {
        if let Err(wrong) = magic::expect(get_u32(message, 0), magic::EXTENDED_REPLY) {
            return Err(wrong);
        }
        Ok(Self {
            flags: ReplyFlags::from_bits(get_u16(message, 4)),
            reply_type: ReplyType(get_u16(message, 6)),
            cookie: get_u64(message, 8),
            offset: get_u64(message, 16),
            length: get_u64(message, 24),
        })
    }
}

/// Which header the next reply has.
///
/// A client that negotiated structured replies must be ready for simple ones as well; the first
/// four bytes tell how many more to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplyKind {
    /// [`SimpleReply`].
    Simple,
    /// [`StructuredReplyChunk`].
    Structured,
    /// [`ExtendedReplyChunk`].
    Extended,
}

impl ReplyKind {
    /// Tells the kinds apart by their magic number.
    ///
    /// # Errors
    ///
    /// [`WrongMagic`] if the first bytes are another number than the magic.
    pub const fn of(first: &[u8; 4]) -> Result<Self, WrongMagic> {
        match u32::from_be_bytes(*first) {
            magic::SIMPLE_REPLY => Ok(Self::Simple),
            magic::STRUCTURED_REPLY => Ok(Self::Structured),
            magic::EXTENDED_REPLY => Ok(Self::Extended),
            found => Err(WrongMagic { found }),
        }
    }

    /// Size of the whole header, in bytes, its magic number included.
    pub const fn header_len(self) -> usize {
        match self {
            Self::Simple => SimpleReply::LEN,
            Self::Structured => StructuredReplyChunk::LEN,
            Self::Extended => ExtendedReplyChunk::LEN,
        }
    }
}
