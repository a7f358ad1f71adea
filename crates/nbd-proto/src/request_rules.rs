//! The rules that a request is checked against.

use crate::TransmissionFlags;

/// The properties of an export that decide which requests are valid (specification:
/// "Transmission flags" and "Size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestRules {
    /// Length of the export, in bytes.
    pub size: u64,
    /// What the export offers.
    pub flags: TransmissionFlags,
    /// What offsets and lengths must be multiples of, in bytes; 1 allows anything.
    pub min_block_size: u32,
    /// The longest read or write that is served, in bytes of data. Commands that move no data
    /// are not held to it.
    pub max_payload: u32,
    /// Whether block status was negotiated: `base:allocation` is among the connection's metadata
    /// contexts.
    pub block_status: bool,
}

impl RequestRules {
    /// The maximum payload that is understood where none was agreed on: 32 MiB.
    pub const DEFAULT_MAX_PAYLOAD: u32 = 1 << 25;

    /// The rules of an export with the size constraints that hold where none were agreed on.
    pub const fn new(size: u64, flags: TransmissionFlags) -> Self {
        Self {
            size,
            flags,
            min_block_size: 1,
            max_payload: Self::DEFAULT_MAX_PAYLOAD,
            block_status: false,
        }
    }

    /// Whether a range lies within the export. Its end may touch the export's end.
    pub const fn holds(&self, offset: u64, length: u64) -> bool {
        // Subtracting cannot wrap here, where `offset + length` could.
        length <= self.size && offset <= self.size - length
    }

    /// Whether a range begins and ends on block boundaries.
    pub const fn aligns(&self, offset: u64, length: u64) -> bool {
        // A block size of 0 constrains nothing, like 1.
        let block = self.min_block_size as u64;
        block == 0 || (offset.is_multiple_of(block) && length.is_multiple_of(block))
    }
}
