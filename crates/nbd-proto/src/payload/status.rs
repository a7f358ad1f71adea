//! The payload of block status chunks: extents and their state, 32 bits wide.

use super::MalformedPayload;
use crate::field::{get_u32, put_u32};

/// `NBD_STATE_HOLE`, a flag of the context `base:allocation`: the extent is not allocated.
pub const ALLOCATION_HOLE: u32 = 1 << 0;
/// `NBD_STATE_ZERO`, a flag of the context `base:allocation`: the extent reads as zeroes.
pub const ALLOCATION_ZERO: u32 = 1 << 1;

/// The start of a block status payload, 4 bytes (`NBD_REPLY_TYPE_BLOCK_STATUS`). [`Extent`]s
/// follow, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockStatusHead {
    /// The metadata context that gives the extents' flags their meaning.
    pub context: u32,
}

impl BlockStatusHead {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 4;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        self.context.to_be_bytes()
    }

    /// Reads the bytes.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { context: u32::from_be_bytes(*bytes) }
    }
}

/// One descriptor of a block status payload, 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Length of the extent, in bytes; it begins where the one before it ends.
    pub length: u32,
    /// Its state, in the terms of the metadata context.
    pub flags: u32,
}

impl Extent {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 8;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u32(&mut bytes, 0, self.length);
        put_u32(&mut bytes, 4, self.flags);
        bytes
    }

    /// Reads the bytes.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { length: get_u32(bytes, 0), flags: get_u32(bytes, 4) }
    }
}

/// A whole block status payload, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus<'a> {
    context: u32,
    extents: &'a [[u8; Extent::LEN]],
}

impl<'a> BlockStatus<'a> {
    /// Parses a payload. There is at least one extent, and none is empty: going from extent to
    /// extent always makes progress.
    ///
    /// # Errors
    ///
    /// If the payload has no extent, an incomplete one or an empty one.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MalformedPayload> {
        let (head, rest) = payload.split_first_chunk().ok_or(MalformedPayload)?;
        let (extents, left_over) = rest.as_chunks();
        let status = Self { context: BlockStatusHead::decode(head).context, extents };
        if extents.is_empty() || !left_over.is_empty() {
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
    pub fn extents(&self) -> impl ExactSizeIterator<Item = Extent> + use<'a> {
        self.extents.iter().map(Extent::decode)
    }
}
