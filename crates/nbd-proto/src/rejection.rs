//! Why a request is answered with an error instead of being carried out.

use core::fmt;

use crate::{CommandFlags, CommandType, NbdError};

/// Why the request must not be executed.
///
/// The connection is fine: the request gets [`error`](Self::error) as its reply, once its
/// payload, if any, has been consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The command is unknown, or the export does not offer it.
    Unsupported(CommandType),
    /// Flags that are unknown, or not offered, or not for this command.
    InvalidFlags {
        /// The command.
        command: CommandType,
        /// The offending flags only.
        flags: CommandFlags,
    },
    /// A write, trim or write zeroes on an export that is read-only.
    ReadOnly(CommandType),
    /// A flush with a range; a flush covers the whole export.
    FlushRange {
        /// The offset, which must be 0.
        offset: u64,
        /// The length, which must be 0.
        length: u64,
    },
    /// A block status of an empty range.
    EmptyRange(CommandType),
    /// More data in one request than the export's maximum payload.
    TooLong {
        /// The command.
        command: CommandType,
        /// Length asked for, in bytes.
        length: u64,
        /// Longest length allowed, in bytes.
        max: u32,
    },
    /// Offset or length are not multiples of the minimum block size.
    Misaligned {
        /// The command.
        command: CommandType,
        /// Start of the range, in bytes.
        offset: u64,
        /// Length of the range, in bytes.
        length: u64,
        /// The minimum block size, in bytes.
        block_size: u32,
    },
    /// The range does not lie within the export.
    BeyondEnd {
        /// The command.
        command: CommandType,
        /// Start of the range, in bytes.
        offset: u64,
        /// Length of the range, in bytes.
        length: u64,
        /// Length of the export, in bytes.
        size: u64,
    },
}

impl Rejection {
    /// What to tell the client (specification: "Error values"); never success.
    pub const fn error(&self) -> NbdError {
        match self {
            Self::ReadOnly(_) => NbdError::EPERM,
            Self::BeyondEnd { command: CommandType::WRITE | CommandType::WRITE_ZEROES, .. } => {
                NbdError::ENOSPC
            }
            // The specification keeps EOVERFLOW for requests that bring no payload.
            Self::TooLong { command: CommandType::READ, .. } => NbdError::EOVERFLOW,
            Self::Unsupported(_)
            | Self::InvalidFlags { .. }
            | Self::FlushRange { .. }
            | Self::EmptyRange(_)
            | Self::TooLong { .. }
            | Self::Misaligned { .. }
            | Self::BeyondEnd { .. } => NbdError::EINVAL,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(command) => write!(f, "{command} is not offered by the export"),
            Self::InvalidFlags { command, flags } => {
                write!(f, "{command} with flags it may not have: {flags}")
            }
            Self::ReadOnly(command) => write!(f, "{command} on a read-only export"),
            Self::FlushRange { offset, length } => {
                write!(f, "flush with offset {offset} and length {length}, which must be 0")
            }
            Self::EmptyRange(command) => write!(f, "{command} of no bytes"),
            Self::TooLong { command, length, max } => {
                write!(f, "{command} of {length} bytes exceeds the maximum of {max}")
            }
            Self::Misaligned { command, offset, length, block_size } => write!(
                f,
                "{command} of {length} bytes at {offset} is not aligned to {block_size} bytes"
            ),
            Self::BeyondEnd { command, offset, length, size } => write!(
                f,
                "{command} of {length} bytes at {offset} passes the end of the export at {size}"
            ),
        }
    }
}

impl core::error::Error for Rejection {}
