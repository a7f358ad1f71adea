//! The messages a client sends.

use core::fmt;

use crate::field::{get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use crate::magic::{self, WrongMagic};
use crate::{CommandFlags, CommandType};

/// A request, 28 bytes (specification: "Request message").
///
/// The data of a write follows it on the wire: [`payload_len`](Self::payload_len) bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Modifiers of the command.
    pub flags: CommandFlags,
    /// What is asked for.
    pub command: CommandType,
    /// The client's name for the request, returned in the reply and without meaning to a server.
    pub cookie: u64,
    /// Start of the range, in bytes from the start of the export.
    pub offset: u64,
    /// Length of the range, in bytes.
    pub length: u32,
}

impl Request {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 28;

    /// The message as it goes on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut message = [0; Self::LEN];
        put_u32(&mut message, 0, magic::REQUEST);
        put_u16(&mut message, 4, self.flags.bits());
        put_u16(&mut message, 6, self.command.0);
        put_u64(&mut message, 8, self.cookie);
        put_u64(&mut message, 16, self.offset);
        put_u32(&mut message, 24, self.length);
        message
    }

    /// Reads a message; any content is accepted behind the right magic number.
    ///
    /// # Errors
    ///
    /// [`WrongMagic`] if the first bytes are another number than the magic.
    pub const fn decode(message: &[u8; Self::LEN]) -> Result<Self, WrongMagic> {
        if let Err(wrong) = magic::expect(get_u32(message, 0), magic::REQUEST) {
            return Err(wrong);
        }
        Ok(Self {
            flags: CommandFlags::from_bits(get_u16(message, 4)),
            command: CommandType(get_u16(message, 6)),
            cookie: get_u64(message, 8),
            offset: get_u64(message, 16),
            length: get_u32(message, 24),
        })
    }

    /// Bytes of data behind the request, to be consumed even when the request is rejected.
    pub const fn payload_len(&self) -> u32 {
        match self.command {
            CommandType::WRITE => self.length,
            _ => 0,
        }
    }
}

/// `write 4096+512 (FUA)`: offset and length in bytes.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fua = self.flags.contains(CommandFlags::FUA);
        write_request(f, self.command, self.offset, self.length.into(), fua)
    }
}

/// A request under extended headers, 32 bytes (specification, branch `extension-ext-header`:
/// "Request message").
///
/// With [`CommandFlags::PAYLOAD_LEN`] the length counts the bytes that follow the request,
/// without it the bytes of the export that the command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtendedRequest {
    /// Modifiers of the command.
    pub flags: CommandFlags,
    /// What is asked for.
    pub command: CommandType,
    /// The client's name for the request, returned in the reply and without meaning to a server.
    pub cookie: u64,
    /// Start of the range, in bytes from the start of the export.
    pub offset: u64,
    /// Length of the range or of the payload, in bytes.
    pub length: u64,
}

impl ExtendedRequest {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 32;

    /// The message as it goes on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut message = [0; Self::LEN];
        put_u32(&mut message, 0, magic::EXTENDED_REQUEST);
        put_u16(&mut message, 4, self.flags.bits());
        put_u16(&mut message, 6, self.command.0);
        put_u64(&mut message, 8, self.cookie);
        put_u64(&mut message, 16, self.offset);
        put_u64(&mut message, 24, self.length);
        message
    }

    /// Reads a message; any content is accepted behind the right magic number.
    ///
    /// # Errors
    ///
    /// [`WrongMagic`] if the first bytes are another number than the magic.
    pub const fn decode(message: &[u8; Self::LEN]) -> Result<Self, WrongMagic> {
        if let Err(wrong) = magic::expect(get_u32(message, 0), magic::EXTENDED_REQUEST) {
            return Err(wrong);
        }
        Ok(Self {
            flags: CommandFlags::from_bits(get_u16(message, 4)),
            command: CommandType(get_u16(message, 6)),
            cookie: get_u64(message, 8),
            offset: get_u64(message, 16),
            length: get_u64(message, 24),
        })
    }

    /// Bytes of data behind the request, whatever the command.
    ///
    /// A server consumes them before it rejects the request, unless there are more of them than
    /// its maximum payload: then it had better disconnect.
    ///
    /// Data follows a write even without [`CommandFlags::PAYLOAD_LEN`]: the specification demands
    /// the flag, and qemu's client does not set it.
    pub const fn payload_len(&self) -> u64 {
        match self.command {
            CommandType::WRITE => self.length,
            _ if self.flags.contains(CommandFlags::PAYLOAD_LEN) => self.length,
            _ => 0,
        }
    }
}

/// What people read of a request, checked or not.
pub(crate) fn write_request(
    f: &mut fmt::Formatter<'_>,
    command: CommandType,
    offset: u64,
    length: u64,
    fua: bool,
) -> fmt::Result {
    write!(f, "{command}")?;
    if !matches!(command, CommandType::FLUSH | CommandType::DISC) || (offset, length) != (0, 0) {
        write!(f, " {offset}+{length}")?;
    }
    if fua { f.write_str(" (FUA)") } else { Ok(()) }
}
