//! What a request asks for.

use core::fmt;

/// The type field of a request (specification: "Request types").
///
/// Any number is a value; one that has no name here is kept as it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommandType(
    /// The number on the wire.
    pub u16,
);

impl CommandType {
    /// `NBD_CMD_READ`: send back the data of a range.
    pub const READ: Self = Self(0);
    /// `NBD_CMD_WRITE`: store the data that follows the request.
    pub const WRITE: Self = Self(1);
    /// `NBD_CMD_DISC`: a soft disconnect; the only command without a reply.
    pub const DISC: Self = Self(2);
    /// `NBD_CMD_FLUSH`: make every write answered so far permanent.
    pub const FLUSH: Self = Self(3);
    /// `NBD_CMD_TRIM`: the data of a range is no longer needed.
    pub const TRIM: Self = Self(4);
    /// `NBD_CMD_CACHE`: a range will be wanted soon.
    pub const CACHE: Self = Self(5);
    /// `NBD_CMD_WRITE_ZEROES`: make a range read as zeroes.
    pub const WRITE_ZEROES: Self = Self(6);
    /// `NBD_CMD_BLOCK_STATUS`: describe the extents of a range.
    pub const BLOCK_STATUS: Self = Self(7);
    /// `NBD_CMD_RESIZE`: reserved for the experimental resize extension.
    pub const RESIZE: Self = Self(8);

    /// Whether the command changes the export's contents; a read-only export refuses those.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::WRITE | Self::TRIM | Self::WRITE_ZEROES)
    }

    /// The command's name, such as `read`, if the specification gives it one.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::READ => "read",
            Self::WRITE => "write",
            Self::DISC => "disconnect",
            Self::FLUSH => "flush",
            Self::TRIM => "trim",
            Self::CACHE => "cache",
            Self::WRITE_ZEROES => "write zeroes",
            Self::BLOCK_STATUS => "block status",
            Self::RESIZE => "resize",
            _ => return None,
        })
    }
}

impl fmt::Display for CommandType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "command {}", self.0),
        }
    }
}

impl fmt::Debug for CommandType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommandType({self})")
    }
}
