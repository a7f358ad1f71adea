//! The file of a diff.
//!
//! ```text
//! 0      header: magic, size of the device, CRC of both
//! 512    the boot during which the recent map was written (the kernel's boot_id, as text)
//! 4096   durable map     one bit for each cluster: it is in the diff, and durably so
//! …      recent map      the same for this boot, durable or not
//! …      data            at its own offset, so that the file is as sparse as the diff is small
//! ```
//!
//! The header is written once, and durable before the diff is used. Numbers are little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::CowError;

/// What is copied at once: what file systems write, so that hardly anything is ever copied.
pub(crate) const CLUSTER: u64 = 4096;
const MAGIC: [u8; 7] = *b"NBDCOW\0";
const VERSION: u8 = 1;
const HEADER: usize = 20;
const BOOT: u64 = 512;
/// Length of the kernel's boot_id.
pub(crate) const BOOT_LENGTH: usize = 36;
const MAPS: u64 = 4096;

/// Where what is in a diff of a device of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) size: u64,
    pub(crate) durable: u64,
    pub(crate) recent: u64,
    pub(crate) data: u64,
}

impl Layout {
    pub(crate) fn of(size: u64) -> Self {
        let map = size.div_ceil(CLUSTER).div_ceil(8).next_multiple_of(4096);
        Self { size, durable: MAPS, recent: MAPS + map, data: MAPS + 2 * map }
    }

    /// Length of a map in bytes.
    pub(crate) fn map(&self) -> u64 {
        self.recent - self.durable
    }

    /// The length of the file.
    pub(crate) fn end(&self) -> u64 {
        self.data + self.size.next_multiple_of(CLUSTER)
    }
}

/// Reads the header.
pub(crate) fn read(file: &File) -> Result<Layout, CowError> {
    let mut header = [0; HEADER];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(CowError::Foreign);
        }
        other => other.map_err(CowError::Access)?,
    }
    if header[..7] != MAGIC || header[16..] != crc32fast::hash(&header[..16]).to_le_bytes() {
        return Err(CowError::Foreign);
    }
    if header[7] != VERSION {
        return Err(CowError::Newer);
    }
    let size = header[8..16].iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    // What no file can have, nobody has written.
    if size == 0 || size > i64::MAX as u64 / 2 {
        return Err(CowError::Foreign);
    }
    Ok(Layout::of(size))
}

/// Writes the header of a new diff.
pub(crate) fn write(file: &File, layout: &Layout) -> io::Result<()> {
    let mut header = [0; HEADER];
    header[..7].copy_from_slice(&MAGIC);
    header[7] = VERSION;
    header[8..16].copy_from_slice(&layout.size.to_le_bytes());
    let checksum = crc32fast::hash(&header[..16]).to_le_bytes();
    header[16..].copy_from_slice(&checksum);
    file.write_all_at(&header, 0)
}

/// The boot during which the recent map was written.
pub(crate) fn boot(file: &File) -> io::Result<[u8; BOOT_LENGTH]> {
    let mut boot = [0; BOOT_LENGTH];
    file.read_exact_at(&mut boot, BOOT)?;
    Ok(boot)
}

pub(crate) fn set_boot(file: &File, boot: &[u8; BOOT_LENGTH]) -> io::Result<()> {
    file.write_all_at(boot, BOOT)
}

/// The present boot.
pub(crate) fn this_boot() -> io::Result<[u8; BOOT_LENGTH]> {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    text.get(..BOOT_LENGTH)
        .and_then(|text| text.try_into().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
