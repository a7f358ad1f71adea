//! The messages of the handshake, and taking them apart.

use alloc::vec::Vec;

use super::codes::{InfoType, OptionReplyType, OptionType};
use crate::TransmissionFlags;
use crate::field::{get_u32, get_u64, put_u16, put_u32, put_u64};

/// `NBDMAGIC`: the first word of a server.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: the second word of a server, and the first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second word of a server that speaks the protocol as it was before 2011.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The first word of every option reply.
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Bytes of a server's first message.
pub const GREETING_LEN: usize = 18;
/// Bytes of zeroes behind the answer to export name, for clients that do not do without.
pub const ZEROES_LEN: usize = 124;

/// The head of an option, 16 bytes; its data follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// Which option.
    pub option: OptionType,
    /// Length of the data, in bytes.
    pub length: u32,
}

impl OptionHead {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 16;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64(&mut bytes, 0, OPTION_MAGIC);
        put_u32(&mut bytes, 8, self.option.0);
        put_u32(&mut bytes, 12, self.length);
        bytes
    }

    /// Reads the bytes; `None` on a wrong magic number.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        if get_u64(bytes, 0) != OPTION_MAGIC {
            return None;
        }
        Some(Self { option: OptionType(get_u32(bytes, 8)), length: get_u32(bytes, 12) })
    }
}

/// The head of a reply to an option, 20 bytes; its data follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHead {
    /// What it answers.
    pub option: OptionType,
    /// What it says.
    pub reply: OptionReplyType,
    /// Length of the data, in bytes.
    pub length: u32,
}

impl OptionReplyHead {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 20;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64(&mut bytes, 0, REPLY_MAGIC);
        put_u32(&mut bytes, 8, self.option.0);
        put_u32(&mut bytes, 12, self.reply.0);
        put_u32(&mut bytes, 16, self.length);
        bytes
    }

    /// Reads the bytes; `None` on a wrong magic number.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        if get_u64(bytes, 0) != REPLY_MAGIC {
            return None;
        }
        Some(Self {
            option: OptionType(get_u32(bytes, 8)),
            reply: OptionReplyType(get_u32(bytes, 12)),
            length: get_u32(bytes, 16),
        })
    }
}

/// Size constraints of an export, in bytes (specification: "NBD_INFO_BLOCK_SIZE").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSizes {
    /// What offsets and lengths must be multiples of: a power of two.
    pub minimum: u32,
    /// What they should be multiples of.
    pub preferred: u32,
    /// The longest read or write.
    pub maximum: u32,
}

impl BlockSizes {
    /// What holds where nothing is said: anything goes in practice, up to 32 MiB.
    pub const DEFAULT: Self = Self { minimum: 1, preferred: 4096, maximum: 32 << 20 };

    /// Whether the numbers are what the specification allows.
    pub const fn is_sound(&self) -> bool {
        self.minimum.is_power_of_two()
            && self.minimum <= 65536
            && self.preferred.is_power_of_two()
            && self.preferred >= self.minimum
            && self.maximum >= self.minimum
    }
}

/// The data of `NBD_INFO_EXPORT`, 12 bytes with its type.
pub(super) const fn encode_export(size: u64, flags: TransmissionFlags) -> [u8; 12] {
    let mut bytes = [0; 12];
    put_u16(&mut bytes, 0, InfoType::EXPORT.0);
    put_u64(&mut bytes, 2, size);
    put_u16(&mut bytes, 10, flags.bits());
    bytes
}

/// The data of `NBD_INFO_BLOCK_SIZE`, 14 bytes with its type.
pub(super) const fn encode_block_sizes(sizes: &BlockSizes) -> [u8; 14] {
    let mut bytes = [0; 14];
    put_u16(&mut bytes, 0, InfoType::BLOCK_SIZE.0);
    put_u32(&mut bytes, 2, sizes.minimum);
    put_u32(&mut bytes, 6, sizes.preferred);
    put_u32(&mut bytes, 10, sizes.maximum);
    bytes
}

/// Appends an option with its data.
pub(super) fn put_option(out: &mut Vec<u8>, option: OptionType, data: &[u8]) {
    out.extend_from_slice(&OptionHead { option, length: data.len() as u32 }.encode());
    out.extend_from_slice(data);
}

/// Appends an answer to an option, with its data.
pub(super) fn put_reply(
    out: &mut Vec<u8>,
    option: OptionType,
    reply: OptionReplyType,
    data: &[u8],
) {
    out.extend_from_slice(&OptionReplyHead { option, reply, length: data.len() as u32 }.encode());
    out.extend_from_slice(data);
}

/// Appends a string with its length before it.
pub(super) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Data of a message, taken from its front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// A string with its length before it.
    pub(super) fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        str::from_utf8(text).ok()
    }

    /// All that is left, as a string.
    pub(super) fn rest(self) -> Option<&'a str> {
        str::from_utf8(self.0).ok()
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}
