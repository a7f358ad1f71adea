//! The bytes of a capture: a header, and an entry for each step.
//!
//! ```text
//! header   0  magic, 8 bytes       8  id of the capture       16  size of the device, u64
//!         24  block size, u32     28  transmission flags, u16   30  0, u16
//!         32  lanes, u32          36  0, u32                    40  limit in bytes, u64
//!         48  begin, seconds since 1970, u64                    56  name of the device, 32 bytes
//!         88  CRC of the 88 bytes, u32                          92  0
//!        128  state, u64: 0 it grows, 1 stopped, 2 the limit is reached, 2^32 + errno
//!        136  end, u64: where the next entry belongs
//! entries from 256 on
//! entry    0  magic, u32           4  kind, u16                  6  lane, u16
//!          8  cookie              16  offset, u64               24  length, u32
//!         28  command, u16        30  command flags, u16        32  CLOCK_MONOTONIC in ns, u64
//!         40  id of the capture                               48  bytes of data that follow, u32
//!         52  taken before, u32   56  CRC of the data, u32      60  CRC of the 60 bytes, u32
//!         64  a write's data
//! ```
//! Numbers are little-endian. The kinds are 1, a backend begins (`offset` is which of the device,
//! `length` its pid); 2, it has taken a request; 3, a request is about to be answered (`length` is
//! the NBD error). An answer has no other fields than lane and cookie.

use std::fmt;

use nbd_control::backend::ExportInfo;
use nbd_ledger::layout::MAX_LANES;
use nbd_proto::{CommandFlags, CommandType, NbdError, Request};

const MAGIC: [u8; 8] = *b"NBDSTRM\x01";
const ENTRY_MAGIC: u32 = 0x454d_5453;
const DEVICE_NAME_BYTES: usize = 32;
const HEADER_CHECKED_BYTES: usize = 88;
/// Where the state lies.
pub(crate) const STATE_OFFSET: u64 = 128;
/// Where the end lies.
pub(crate) const END_OFFSET: u64 = 136;
/// Where entries begin.
pub(crate) const ENTRIES_OFFSET: u64 = 256;
/// Bytes of an entry without its data.
pub(crate) const ENTRY_BYTES: usize = 64;

/// The header of a capture: which device, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureHeader {
    /// Random. Each entry repeats it, so that the entries of another capture, which may well be a
    /// request's data, are not taken for its own.
    pub id: u64,
    /// The device's shape.
    pub export: ExportInfo,
    /// Its lanes.
    pub lanes: u32,
    /// The most bytes that the capture may have.
    pub limit: u64,
    /// When it was begun, in seconds since 1970.
    pub began: u64,
    /// The device, like `nbd0`.
    pub device: String,
}

/// Whether a capture still grows, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureState {
    /// Backends write to it.
    Going,
    /// The operator stopped it.
    Stopped,
    /// Its limit is reached.
    Full,
    /// A write to it failed with this errno.
    Failed(i32),
}

impl fmt::Display for CaptureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Going => f.write_str("it goes on"),
            Self::Stopped => f.write_str("it was stopped"),
            Self::Full => f.write_str("its limit is reached"),
            Self::Failed(errno) => {
                let what = nix::errno::Errno::from_raw(*errno).desc();
                write!(f, "it cannot be written to: {what}")
            }
        }
    }
}

impl CaptureState {
    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Going => 0,
            Self::Stopped => 1,
            Self::Full => 2,
            Self::Failed(errno) => 1 << 32 | u64::from(errno.unsigned_abs()),
        }
    }

    pub(crate) fn decode(word: u64) -> Self {
        match word {
            0 => Self::Going,
            1 => Self::Stopped,
            2 => Self::Full,
            word => Self::Failed(i32::try_from(word & 0xffff_ffff).unwrap_or(0)),
        }
    }
}

impl CaptureHeader {
    /// Bytes of a capture without entries.
    pub const LENGTH: u64 = ENTRIES_OFFSET;

    pub(crate) fn encode(&self) -> [u8; ENTRIES_OFFSET as usize] {
        let mut bytes = [0; ENTRIES_OFFSET as usize];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &self.id.to_le_bytes());
        put(16, &self.export.size.to_le_bytes());
        put(24, &self.export.block_size.to_le_bytes());
        put(28, &self.export.flags.to_le_bytes());
        put(32, &self.lanes.to_le_bytes());
        put(40, &self.limit.to_le_bytes());
        put(48, &self.began.to_le_bytes());
        put(56, &self.device.as_bytes()[..self.device.len().min(DEVICE_NAME_BYTES)]);
        put(END_OFFSET as usize, &ENTRIES_OFFSET.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..HEADER_CHECKED_BYTES]);
        bytes[HEADER_CHECKED_BYTES..HEADER_CHECKED_BYTES + 4]
            .copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are no header, or if no device can have this shape.
    pub(crate) fn decode(bytes: &[u8; ENTRIES_OFFSET as usize]) -> Option<Self> {
        let whole =
            crc32fast::hash(&bytes[..HEADER_CHECKED_BYTES]) == word(bytes, HEADER_CHECKED_BYTES);
        if bytes[..8] != MAGIC || !whole {
            return None;
        }
        let name = &bytes[56..56 + DEVICE_NAME_BYTES];
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let export = ExportInfo {
            size: long(bytes, 16),
            block_size: word(bytes, 24),
            flags: half(bytes, 28),
        };
        let header = Self {
            id: long(bytes, 8),
            export,
            lanes: word(bytes, 32),
            limit: long(bytes, 40),
            began: long(bytes, 48),
            device: String::from_utf8_lossy(name).into_owned(),
        };
        let shaped = export.block_size.is_power_of_two()
            && (512..=4096).contains(&export.block_size)
            && (1..1 << 63).contains(&export.size)
            && export.size.is_multiple_of(export.block_size.into())
            && (1..=MAX_LANES).contains(&header.lanes);
        shaped.then_some(header)
    }
}

/// What an entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A backend was granted the lanes.
    BackendStarted { generation: u64, pid: u32 },
    /// The backend took a request; `before` if a predecessor had taken it too.
    Request { request: Request, before: bool },
    /// The backend is about to answer.
    Answer { cookie: u64, error: NbdError },
}

/// An entry without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) lane: u16,
    pub(crate) time: u64,
    /// Bytes of data, and their checksum.
    pub(crate) data: u32,
    pub(crate) checksum: u32,
}

impl Entry {
    pub(crate) fn encode(&self, id: u64) -> [u8; ENTRY_BYTES] {
        let zero = Request {
            flags: CommandFlags::NONE,
            command: CommandType(0),
            cookie: 0,
            offset: 0,
            length: 0,
        };
        let (code, fields, before) = match self.kind {
            EntryKind::BackendStarted { generation, pid } => {
                (1u16, Request { offset: generation, length: pid, ..zero }, false)
            }
            EntryKind::Request { request, before } => (2, request, before),
            EntryKind::Answer { cookie, error } => {
                (3, Request { cookie, length: error.0, ..zero }, false)
            }
        };
        let mut bytes = [0; ENTRY_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &ENTRY_MAGIC.to_le_bytes());
        put(4, &code.to_le_bytes());
        put(6, &self.lane.to_le_bytes());
        put(8, &fields.cookie.to_le_bytes());
        put(16, &fields.offset.to_le_bytes());
        put(24, &fields.length.to_le_bytes());
        put(28, &fields.command.0.to_le_bytes());
        put(30, &fields.flags.bits().to_le_bytes());
        put(32, &self.time.to_le_bytes());
        put(40, &id.to_le_bytes());
        put(48, &self.data.to_le_bytes());
        put(52, &u32::from(before).to_le_bytes());
        put(56, &self.checksum.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..ENTRY_BYTES - 4]);
        bytes[ENTRY_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` if that is no entry of this capture.
    pub(crate) fn decode(bytes: &[u8; ENTRY_BYTES], id: u64) -> Option<Self> {
        let whole = crc32fast::hash(&bytes[..ENTRY_BYTES - 4]) == word(bytes, ENTRY_BYTES - 4);
        if word(bytes, 0) != ENTRY_MAGIC || long(bytes, 40) != id || !whole {
            return None;
        }
        let request = Request {
            flags: CommandFlags::from_bits(half(bytes, 30)),
            command: CommandType(half(bytes, 28)),
            cookie: long(bytes, 8),
            offset: long(bytes, 16),
            length: word(bytes, 24),
        };
        let kind = match half(bytes, 4) {
            1 => EntryKind::BackendStarted { generation: request.offset, pid: request.length },
            2 => EntryKind::Request { request, before: word(bytes, 52) != 0 },
            3 => EntryKind::Answer { cookie: request.cookie, error: NbdError(request.length) },
            _ => return None,
        };
        Some(Self {
            kind,
            lane: half(bytes, 6),
            time: long(bytes, 32),
            data: word(bytes, 48),
            checksum: word(bytes, 56),
        })
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}
