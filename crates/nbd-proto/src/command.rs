//! A request that has passed its check.

use core::fmt;

use crate::request::write_request;
use crate::{CommandFlags, CommandType, ExtendedRequest, Request};

/// What a server has to do: in order, within the export, and offered by it.
///
/// Only [`Request::check`] and [`ExtendedRequest::check`] stand between the wire and a value of
/// this type, so its receiver checks nothing again. Offsets and lengths are in bytes. A
/// length of 0 is possible and succeeds without effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Send back the data of a range. One chunk is always a correct reply, so the DF flag is
    /// not passed on.
    Read {
        /// Start of the range.
        offset: u64,
        /// Length of the range and of the reply's data.
        length: u32,
    },
    /// Store the data that follows the request.
    Write {
        /// Start of the range.
        offset: u64,
        /// Length of the range and of the data.
        length: u32,
        /// Make it permanent before the reply.
        fua: bool,
    },
    /// Make every write answered so far permanent.
    Flush,
    /// Drop the data of a range, which then reads as anything; doing nothing is correct.
    Trim {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        length: u64,
        /// Make it permanent before the reply.
        fua: bool,
    },
    /// Get a range ready for reading; doing nothing is correct.
    Cache {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        length: u64,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        length: u64,
        /// Make it permanent before the reply.
        fua: bool,
        /// Leave the range allocated.
        no_hole: bool,
        /// Fail with ENOTSUP, and at once, if it would take as long as writing.
        fast_only: bool,
    },
    /// Tell which parts of a range are allocated (context `base:allocation`).
    BlockStatus {
        /// Start of the range.
        offset: u64,
        /// Length of the range; never 0.
        length: u64,
        /// One extent is enough.
        one: bool,
    },
    /// Finish what is under way and close the connection. Never gets a reply.
    Disconnect,
}

/// `write 4096+512 (FUA)`: offset and length in bytes.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, length) = self.range();
        let fua = matches!(
            self,
            Self::Write { fua: true, .. }
                | Self::Trim { fua: true, .. }
                | Self::WriteZeroes { fua: true, .. }
        );
        write_request(f, self.command_type(), offset, length, fua)
    }
}

impl Command {
    /// The command's type.
    pub const fn command_type(&self) -> CommandType {
        match self {
            Self::Read { .. } => CommandType::READ,
            Self::Write { .. } => CommandType::WRITE,
            Self::Flush => CommandType::FLUSH,
            Self::Trim { .. } => CommandType::TRIM,
            Self::Cache { .. } => CommandType::CACHE,
            Self::WriteZeroes { .. } => CommandType::WRITE_ZEROES,
            Self::BlockStatus { .. } => CommandType::BLOCK_STATUS,
            Self::Disconnect => CommandType::DISC,
        }
    }

    /// Offset and length in bytes; zeroes for the commands that have no range.
    pub const fn range(&self) -> (u64, u64) {
        match *self {
            Self::Read { offset, length } | Self::Write { offset, length, .. } => {
                (offset, length as u64)
            }
            Self::Trim { offset, length, .. }
            | Self::Cache { offset, length }
            | Self::WriteZeroes { offset, length, .. }
            | Self::BlockStatus { offset, length, .. } => (offset, length),
            Self::Flush | Self::Disconnect => (0, 0),
        }
    }

    /// The flags that ask for this command.
    pub fn flags(&self) -> CommandFlags {
        let when = |set, flag| if set { flag } else { CommandFlags::NONE };
        match *self {
            Self::Write { fua, .. } | Self::Trim { fua, .. } => when(fua, CommandFlags::FUA),
            Self::WriteZeroes { fua, no_hole, fast_only, .. } => {
                when(fua, CommandFlags::FUA)
                    | when(no_hole, CommandFlags::NO_HOLE)
                    | when(fast_only, CommandFlags::FAST_ZERO)
            }
            Self::BlockStatus { one, .. } => when(one, CommandFlags::REQ_ONE),
            _ => CommandFlags::NONE,
        }
    }

    /// The request that asks another server for this command, or nothing if the length does not
    /// fit into 32 bits.
    pub fn to_request(&self, cookie: u64) -> Option<Request> {
        let (offset, length) = self.range();
        let length = u32::try_from(length).ok()?;
        let (flags, command) = (self.flags(), self.command_type());
        Some(Request { flags, command, cookie, offset, length })
    }

    /// The request that asks another server for this command, under extended headers.
    pub fn to_extended_request(&self, cookie: u64) -> ExtendedRequest {
        let (offset, length) = self.range();
        let (mut flags, command) = (self.flags(), self.command_type());
        if command == CommandType::WRITE {
            flags |= CommandFlags::PAYLOAD_LEN;
        }
        ExtendedRequest { flags, command, cookie, offset, length }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn people_read_a_name_and_a_range() {
        let write = Command::Write { offset: 4096, length: 512, fua: true };
        assert_eq!(write.to_string(), "write 4096+512 (FUA)");
        let zeroes = Command::WriteZeroes {
            offset: 0,
            length: 1 << 33,
            fua: false,
            no_hole: true,
            fast_only: false,
        };
        assert_eq!(zeroes.to_string(), "write zeroes 0+8589934592");
        assert_eq!(Command::Flush.to_string(), "flush");
        let unknown = Request {
            flags: CommandFlags::default(),
            command: CommandType(99),
            cookie: 7,
            offset: 1,
            length: 2,
        };
        assert_eq!(unknown.to_string(), "command 99 1+2");
    }
}
