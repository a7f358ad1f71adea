//! What was agreed on with a server, as far as requests depend on it.

use nbd_proto::Command;
use nbd_proto::handshake::ReplyStyle;

/// The longest range that fits into a request of 32 bits, a multiple of every block size.
const MAX_COMPACT_RANGE_BYTES: u64 = u32::MAX as u64 & !0xffff;

/// What was negotiated on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Negotiated {
    pub(crate) style: ReplyStyle,
    /// The number of the metadata context `base:allocation`.
    pub(crate) allocation: Option<u32>,
    /// The longest read or write: a multiple of the block size.
    pub(crate) max_payload: u32,
    /// Flush is understood. If not, what was answered is as durable as it ever gets.
    pub(crate) has_flush: bool,
    /// Cache is understood.
    pub(crate) has_cache: bool,
    /// Flush on one connection covers what was written over another.
    pub(crate) is_multi: bool,
}

impl Negotiated {
    /// The longest range of a request for such a command, in bytes.
    pub(crate) fn max_length(&self, command: &Command) -> u64 {
        match command {
            Command::Read { .. } | Command::Write { .. } => u64::from(self.max_payload),
            _ if self.style == ReplyStyle::Extended => u64::MAX,
            _ => MAX_COMPACT_RANGE_BYTES,
        }
    }
}
