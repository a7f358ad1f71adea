//! The payload of content chunks: what was read.

use crate::field::{get_u32, get_u64, put_u32, put_u64};

/// The start of an offset data payload, 8 bytes (`NBD_REPLY_TYPE_OFFSET_DATA`). The data, at
/// least one byte, is the rest of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OffsetData {
    /// Where the data belongs, in bytes from the start of the export.
    pub offset: u64,
}

impl OffsetData {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 8;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        self.offset.to_be_bytes()
    }

    /// Reads the bytes.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { offset: u64::from_be_bytes(*bytes) }
    }
}

/// An offset hole payload, 12 bytes and not one more (`NBD_REPLY_TYPE_OFFSET_HOLE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OffsetHole {
    /// Where the zeroes begin, in bytes from the start of the export.
    pub offset: u64,
    /// How many there are, in bytes; a server must not send 0.
    pub length: u32,
}

impl OffsetHole {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 12;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64(&mut bytes, 0, self.offset);
        put_u32(&mut bytes, 8, self.length);
        bytes
    }

    /// Reads the bytes.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { offset: get_u64(bytes, 0), length: get_u32(bytes, 8) }
    }
}
