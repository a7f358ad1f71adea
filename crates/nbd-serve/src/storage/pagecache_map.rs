//! What the kernel has of a file in memory, to be sent from there.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use nbd_backend::MappedRange;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::mman::ProtFlags;
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, fstatfs,
};
use nix::unistd::geteuid;

use crate::storage::mapping::{Mapping, PAGE};

/// Shorter reads are copied: asking for the pages costs as much.
const MIN_LEN: usize = 32 << 10;
/// Longer ones as well: asking for them takes long.
const MAX_LEN: usize = 1 << 20;

/// `linux/magic.h`; with musl nix does not have it.
const XFS_SUPER_MAGIC: FsType = FsType(0x5846_5342);

/// Where nobody changes files but through the same page cache. Another machine does, of a file
/// that is on a network, and those who read what they have mapped never hear of it.
const LOCAL: [FsType; 4] = [BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, XFS_SUPER_MAGIC];

/// An overlay's file that is only read may lie below, and is copied up when somebody else writes
/// to it: what was mapped before stays what it was (`Documentation/filesystems/overlayfs.rst`).
fn is_local(found: FsType, is_writable: bool) -> bool {
    LOCAL.contains(&found) || found == OVERLAYFS_SUPER_MAGIC && is_writable
}

/// A file's part of the page cache.
#[derive(Debug)]
pub(crate) struct PagecacheMap(Arc<Mapping>);

impl PagecacheMap {
    /// `None` where the file cannot be mapped, or its pages are nothing that we may know about: of
    /// a file that is another user's and not ours to write, mincore(2) says that all of it is there.
    pub(crate) fn new(file: &File, size: u64) -> Option<Self> {
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL).ok()?);
        let is_writable = flags.intersection(OFlag::O_ACCMODE) == OFlag::O_RDWR;
        let data = file.metadata().ok()?;
        let is_known = is_writable || data.uid() == geteuid().as_raw();
        let is_device = data.file_type().is_block_device();
        let is_local =
            || fstatfs(file).is_ok_and(|found| is_local(found.filesystem_type(), is_writable));
        if !is_known || !is_device && !is_local() {
            return None;
        }
        Mapping::new(file, size, ProtFlags::PROT_READ).ok().map(Self)
    }

    /// A range, if all of it is there. If some of it is thrown out before it is sent, whoever
    /// sends it waits for the disk.
    pub(crate) fn range(&self, offset: u64, length: usize) -> Option<MappedRange> {
        let Self(mapping) = self;
        if !(MIN_LEN..=MAX_LEN).contains(&length) || !mapping.reaches(offset, length) {
            return None;
        }
        let before = (offset % PAGE) as usize;
        let mut pages = [0; MAX_LEN / PAGE as usize + 1];
        let pages = &mut pages[..(before + length).div_ceil(PAGE as usize)];
        let is_known = mapping.residence(offset - before as u64, before + length, pages);
        let is_there = is_known && pages.iter().all(|&page| page != 0);
        if is_there { mapping.range(offset, length) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::FileExt;

    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

    use super::*;
    use crate::testing::pattern;

    const SIZE: usize = 2 << 20;

    /// A file beside the test's program, as that is on a disk, and other places often are not.
    fn on_disk(name: &str, test: impl FnOnce(&File, &[u8])) {
        let program = std::env::current_exe().unwrap();
        let path = program.with_file_name(format!("cached-{}-{name}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let data = pattern(SIZE, 5);
        file.write_all_at(&data, 0).unwrap();
        test(&file, &data);
    }

    fn content(range: &MappedRange) -> Vec<u8> {
        let mut buffer = vec![0; range.len()];
        range.read(&mut buffer).unwrap();
        buffer
    }

    #[test]
    fn an_overlay_is_local_only_for_those_who_write() {
        assert!(is_local(OVERLAYFS_SUPER_MAGIC, true) && !is_local(OVERLAYFS_SUPER_MAGIC, false));
        assert!(is_local(EXT4_SUPER_MAGIC, false));
        assert!(!is_local(nix::sys::statfs::NFS_SUPER_MAGIC, true));
    }

    #[test]
    fn what_is_in_the_page_cache_is_lent() {
        on_disk("lent", |file, data| {
            let pagecache_map = PagecacheMap::new(file, SIZE as u64).unwrap();
            for (offset, length) in
                [(0, MIN_LEN), (4096, MAX_LEN), (777, MIN_LEN + 1), (SIZE - MAX_LEN, MAX_LEN)]
            {
                let mut range = pagecache_map.range(offset as u64, length).unwrap();
                assert_eq!(content(&range), data[offset..offset + length]);
                range.consume(1000);
                assert_eq!(content(&range), data[offset + 1000..offset + length]);
            }
            for (offset, length) in
                [(0, MIN_LEN - 1), (0, MAX_LEN + 1), (SIZE - MIN_LEN + 1, MIN_LEN)]
            {
                assert!(pagecache_map.range(offset as u64, length).is_none());
            }
        });
    }

    #[test]
    fn what_has_to_be_fetched_is_not() {
        on_disk("fetched", |file, _| {
            let pagecache_map = PagecacheMap::new(file, SIZE as u64).unwrap();
            assert!(pagecache_map.range(0, MIN_LEN).is_some());
            file.sync_all().unwrap();
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            assert!(pagecache_map.range(0, MIN_LEN).is_none());
            file.read_exact_at(&mut [0; MAX_LEN], 0).unwrap();
            assert!(pagecache_map.range(0, MIN_LEN).is_some());
        });
    }

    #[test]
    fn after_a_failure_nothing_is() {
        on_disk("failure", |file, _| {
            let pagecache_map = PagecacheMap::new(file, SIZE as u64).unwrap();
            let range = pagecache_map.range((SIZE - MIN_LEN) as u64, MIN_LEN).unwrap();
            file.set_len(4096).unwrap();
            assert!(range.read(&mut [0; MIN_LEN]).is_err());
            file.write_all_at(&pattern(SIZE, 6), 0).unwrap();
            assert!(pagecache_map.range(0, MIN_LEN).is_none());
        });
    }
}
