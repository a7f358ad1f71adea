//! The payload of a block status request that wants some of the metadata contexts only.

use super::MalformedPayload;

/// The start of the payload, 8 bytes. Metadata contexts follow, 4 bytes each.
///
/// Under extended headers only, behind an `NBD_CMD_BLOCK_STATUS` with
/// [`PAYLOAD_LEN`](crate::CommandFlags::PAYLOAD_LEN), and only if the export offers
/// [`BLOCK_STATUS_PAYLOAD`](crate::TransmissionFlags::BLOCK_STATUS_PAYLOAD).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusFilterHead {
    /// Length of the range asked about, in bytes: the request's own length counts payload.
    pub effect_length: u64,
}

impl StatusFilterHead {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 8;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        self.effect_length.to_be_bytes()
    }

    /// Reads the bytes.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { effect_length: u64::from_be_bytes(*bytes) }
    }
}

/// The whole payload, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFilter<'a> {
    effect_length: u64,
    contexts: &'a [[u8; 4]],
}

impl<'a> StatusFilter<'a> {
    /// Parses a payload. Contexts may be unknown to the server or come twice: that is for the
    /// server to refuse.
    ///
    /// # Errors
    ///
    /// If the payload is no whole number of contexts behind its effect length.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MalformedPayload> {
        let (head, rest) = payload.split_first_chunk().ok_or(MalformedPayload)?;
        let (contexts, left_over) = rest.as_chunks();
        if !left_over.is_empty() {
            return Err(MalformedPayload);
        }
        Ok(Self { effect_length: StatusFilterHead::decode(head).effect_length, contexts })
    }

    /// Length of the range asked about, in bytes.
    pub const fn effect_length(&self) -> u64 {
        self.effect_length
    }

    /// The metadata contexts to answer for.
    pub fn contexts(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.contexts.iter().map(|bytes| u32::from_be_bytes(*bytes))
    }
}
