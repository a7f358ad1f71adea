//! The payload of extended block status chunks: extents and their state, 64 bits wide.

use super::MalformedPayload;
use crate::field::{get_u32, get_u64, put_u32, put_u64};

/// The start of an extended block status payload, 8 bytes (`NBD_REPLY_TYPE_BLOCK_STATUS_EXT`).
/// [`ExtendedExtent`]s follow, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtendedBlockStatusHead {
    /// The metadata context that gives the extents' flags their meaning.
    pub context: u32,
    /// How many extents follow.
    pub count: u32,
}

impl ExtendedBlockStatusHead {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 8;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u32(&mut bytes, 0, self.context);
        put_u32(&mut bytes, 4, self.count);
        bytes
    }

    /// Reads the bytes.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { context: get_u32(bytes, 0), count: get_u32(bytes, 4) }
    }
}

/// One descriptor of an extended block status payload, 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtendedExtent {
    /// Length of the extent, in bytes; it begins where the one before it ends.
    pub length: u64,
    /// Its state, in the terms of the metadata context.
    pub flags: u64,
}

impl ExtendedExtent {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 16;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64(&mut bytes, 0, self.length);
        put_u64(&mut bytes, 8, self.flags);
        bytes
    }

    /// Reads the bytes.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { length: get_u64(bytes, 0), flags: get_u64(bytes, 8) }
    }
}

/// A whole extended block status payload, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedBlockStatus<'a> {
    context: u32,
    extents: &'a [[u8; ExtendedExtent::LEN]],
}

impl<'a> ExtendedBlockStatus<'a> {
    /// Parses a payload. There are as many extents as announced, at least one, and none is
    /// empty: going from extent to extent always makes progress.
    ///
    /// # Errors
    ///
    /// If the payload has no extent, another number of extents than announced, or an empty one.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MalformedPayload> {
        let (head, rest) = payload.split_first_chunk().ok_or(MalformedPayload)?;
        let ExtendedBlockStatusHead { context, count } = ExtendedBlockStatusHead::decode(head);
        let (extents, left_over) = rest.as_chunks();
        let status = Self { context, extents };
        if extents.is_empty() || !left_over.is_empty() || u32::try_from(extents.len()) != Ok(count)
        {
            return Err(MalformedPayload);
        }
        if status.extents().any(|extent| extent.length == 0) {
            return Err(MalformedPayload);
        }
        Ok(status)
    }

    /// The metadata context that gives the extents' flags their meaning.
    pub const fn context(&self) -> u32 {
        self.context
    }

    /// The extents, in order of their place in the export.
    pub fn extents(&self) -> impl ExactSizeIterator<Item = ExtendedExtent> + use<'a> {
        self.extents.iter().map(ExtendedExtent::decode)
    }
}
