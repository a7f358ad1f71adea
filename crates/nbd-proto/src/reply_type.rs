//! What a reply chunk carries.

use core::fmt;

/// The type field of a reply chunk (specification: "Structured reply types").
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplyType(
    /// The number on the wire.
    pub u16,
);

impl ReplyType {
    /// `NBD_REPLY_TYPE_NONE`: no payload; only ever the last chunk.
    pub const NONE: Self = Self(0);
    /// `NBD_REPLY_TYPE_OFFSET_DATA`: data that was read.
    pub const OFFSET_DATA: Self = Self(1);
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`: a range that reads as zeroes.
    pub const OFFSET_HOLE: Self = Self(2);
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`: extents, 32 bits wide.
    pub const BLOCK_STATUS: Self = Self(5);
    /// `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`: extents, 64 bits wide; needs extended headers.
    pub const BLOCK_STATUS_EXT: Self = Self(6);
    /// `NBD_REPLY_TYPE_ERROR`: the request failed.
    pub const ERROR: Self = Self(0x8001);
    /// `NBD_REPLY_TYPE_ERROR_OFFSET`: the request failed at a known place.
    pub const ERROR_OFFSET: Self = Self(0x8002);

    /// Whether the chunk reports a failure. True for types yet to be invented too: their payload
    /// begins like that of [`ERROR`](Self::ERROR).
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }

    const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NONE => "none",
            Self::OFFSET_DATA => "offset data",
            Self::OFFSET_HOLE => "offset hole",
            Self::BLOCK_STATUS => "block status",
            Self::BLOCK_STATUS_EXT => "extended block status",
            Self::ERROR => "error",
            Self::ERROR_OFFSET => "error offset",
            _ => return None,
        })
    }
}

impl fmt::Display for ReplyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "reply type {}", self.0),
        }
    }
}

impl fmt::Debug for ReplyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyType({self})")
    }
}
