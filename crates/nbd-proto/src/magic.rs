//! The number each message begins with, and the error for finding another.

use core::fmt;

/// `NBD_REQUEST_MAGIC`: begins a [`Request`](crate::Request).
pub const REQUEST: u32 = 0x2560_9513;
/// `NBD_EXTENDED_REQUEST_MAGIC`: begins an [`ExtendedRequest`](crate::ExtendedRequest).
pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// `NBD_SIMPLE_REPLY_MAGIC`: begins a [`SimpleReply`](crate::SimpleReply).
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// `NBD_STRUCTURED_REPLY_MAGIC`: begins a [`StructuredReplyChunk`](crate::StructuredReplyChunk).
pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// `NBD_EXTENDED_REPLY_MAGIC`: begins an [`ExtendedReplyChunk`](crate::ExtendedReplyChunk).
pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// The bytes do not begin with the magic number of the message they were taken for.
///
/// The two sides no longer agree on where messages begin, and there is no way to find out: a
/// protocol error, after which only a hard disconnect is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongMagic {
    /// What stood in its place.
    pub found: u32,
}

impl fmt::Display for WrongMagic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wrong magic number {:#010x}", self.found)
    }
}

impl core::error::Error for WrongMagic {}

/// Accepts only the magic number `wanted`.
pub(crate) const fn expect(found: u32, wanted: u32) -> Result<(), WrongMagic> {
    if found == wanted { Ok(()) } else { Err(WrongMagic { found }) }
}
