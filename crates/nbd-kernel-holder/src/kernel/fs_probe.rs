//! How much of a device is needed by what is on it, as far as that can be told.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::{Device, read_number};

/// Where the superblocks of the known file systems begin.
const EXT: u64 = 1024;
const XFS: u64 = 0;
const BTRFS: u64 = 64 << 10;
/// As much of each as is looked at.
const LENGTH: usize = 1024;

/// The first byte that neither a file system nor a partition needs; 0 if nothing is known.
pub(super) fn end(file: &File, device: &Device) -> io::Result<u64> {
    let mut end = last_partition(device);
    for (start, read) in [(EXT, ext as fn(&[u8]) -> Option<u64>), (XFS, xfs), (BTRFS, btrfs)] {
        let mut block = [0; LENGTH];
        match file.read_exact_at(&mut block, start) {
            Ok(()) => end = end.max(read(&block).unwrap_or(0)),
            // So small a device has none.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(end)
}

fn last_partition(device: &Device) -> u64 {
    let entries = fs::read_dir(device.sys("")).into_iter().flatten().flatten();
    let ends = entries.filter_map(|entry| {
        let number = |name: &str| read_number(&entry.path().join(name));
        // Whatever the block size is.
        Some((number("start")? + number("size")?) * 512)
    });
    ends.max().unwrap_or(0)
}

fn little(block: &[u8], at: usize, length: usize) -> u64 {
    block[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn big(block: &[u8], at: usize, length: usize) -> u64 {
    block[at..at + length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// ext2, ext3 and ext4: `s_magic`, `s_blocks_count` in two halves, of which the upper one counts
/// with the feature "64bit" only, and `s_log_block_size`.
fn ext(block: &[u8]) -> Option<u64> {
    let has_64_bits = little(block, 0x60, 4) & 0x80 != 0;
    let upper = if has_64_bits { little(block, 0x150, 4) << 32 } else { 0 };
    let blocks = little(block, 4, 4) | upper;
    let size = 1024_u64.checked_shl(little(block, 24, 4).try_into().ok()?)?;
    (little(block, 56, 2) == 0xef53).then(|| blocks.saturating_mul(size))
}

/// XFS: `sb_magicnum`, `sb_blocksize`, `sb_dblocks`.
fn xfs(block: &[u8]) -> Option<u64> {
    (block[..4] == *b"XFSB").then(|| big(block, 4, 4).saturating_mul(big(block, 8, 8)))
}

/// Btrfs: `magic`, `dev_item.total_bytes`.
fn btrfs(block: &[u8]) -> Option<u64> {
    (block[64..72] == *b"_BHRfS_M").then(|| little(block, 209, 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_tell_the_size() {
        let mut block = [0; LENGTH];
        assert_eq!((ext(&block), xfs(&block), btrfs(&block)), (None, None, None));
        block[56..58].copy_from_slice(&[0x53, 0xef]);
        block[4..8].copy_from_slice(&16384_u32.to_le_bytes());
        block[24] = 2;
        assert_eq!(ext(&block), Some(64 << 20));
        block[0x150] = 1;
        assert_eq!(ext(&block), Some(64 << 20), "without the feature there is no upper half");
        block[0x60] = 0x80;
        assert_eq!(ext(&block), Some((64 << 20) + (1 << 44)));
        block[24] = 255;
        assert_eq!(ext(&block), None, "no size at all");

        let mut block = [0; LENGTH];
        block[..4].copy_from_slice(b"XFSB");
        block[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        block[8..16].copy_from_slice(&1000_u64.to_be_bytes());
        assert_eq!(xfs(&block), Some(4_096_000));

        let mut block = [0; LENGTH];
        block[64..72].copy_from_slice(b"_BHRfS_M");
        block[209..217].copy_from_slice(&(1_u64 << 30).to_le_bytes());
        assert_eq!(btrfs(&block), Some(1 << 30));
    }
}
