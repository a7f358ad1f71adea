//! Memory reached without a system call: mapped, where it is certain that the pages exist.
//!
//! To touch a page that is not there would make it, though a hole takes up no room when it is
//! read the other way; and where there is no memory left for it, the process would be killed by
//! SIGBUS instead of a write failing with ENOSPC. So this keeps a note of the pages that exist,
//! and reaches only chunks of which all do; the page tables of a chunk are filled in at once,
//! since a fault for each page costs more than the system calls that it saves.
//!
//! What others can truncate is never touched, only handed to the kernel.
//!
//! It may know too little, and then the caller uses a system call; a page that is noted and was
//! punched out meanwhile comes back as zeroes, which is what a hole reads as.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use nbd_backend::MappedRange;
use nix::sys::mman::ProtFlags;

use crate::storage::mapping::{Mapping, PAGE};

/// Pages of a chunk: those that a word has bits for.
const CHUNK: u64 = 64;
/// Chunks of a region, whose notes are made when it is first used: 1 GiB.
const REGION: u64 = 4096;

/// A mapped file in a file system of memory.
#[derive(Debug)]
pub(crate) struct TmpfsMap {
    mapping: Arc<Mapping>,
    /// Nobody can truncate it, so that its bytes may be touched.
    is_sealed: bool,
    is_writable: bool,
    regions: Vec<OnceLock<Notes>>,
}

/// What is known about a chunk.
#[derive(Debug, Default)]
struct Chunk {
    /// A bit for each page: it exists.
    exists: AtomicU64,
    /// The kernel was asked what exists.
    asked: AtomicBool,
    /// All pages exist and are in the page tables.
    ready: AtomicBool,
}

type Notes = Box<[Chunk]>;

/// The units of a size that a range touches.
fn touched(offset: u64, length: u64, unit: u64) -> Range<u64> {
    if length == 0 {
        return 0..0;
    }
    offset / unit..(offset + length).div_ceil(unit)
}

impl TmpfsMap {
    /// Maps `size` bytes of a file that is sealed against shrinking.
    pub(crate) fn sealed(file: &File, size: u64) -> io::Result<Self> {
        Self::new(file, size, true, true)
    }

    /// Maps `size` bytes of a file that has them now. They can only be handed to the kernel.
    pub(crate) fn unsealed(file: &File, size: u64, is_writable: bool) -> io::Result<Self> {
        Self::new(file, size, false, is_writable)
    }

    fn new(file: &File, size: u64, is_sealed: bool, is_writable: bool) -> io::Result<Self> {
        let writable = if is_writable { ProtFlags::PROT_WRITE } else { ProtFlags::empty() };
        let mapping = Mapping::new(file, size, ProtFlags::PROT_READ | writable)?;
        let regions = (0..size.div_ceil(PAGE * CHUNK * REGION)).map(|_| OnceLock::new()).collect();
        Ok(Self { mapping, is_sealed, is_writable, regions })
    }

    /// A range to be sent from where it is, if all of it is there.
    pub(crate) fn range(&self, offset: u64, length: usize) -> Option<MappedRange> {
        let is_there = self.mapping.reaches(offset, length) && self.is_ready(offset, length);
        if is_there { self.mapping.range(offset, length) } else { None }
    }

    /// A range to be received to, if all of it is there.
    pub(crate) fn range_mut(&self, offset: u64, length: usize) -> Option<MappedRange> {
        if self.is_writable { self.range(offset, length) } else { None }
    }

    /// Copies from the file if all of the range is there.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> bool {
        if !self.can_touch(offset, buffer.len()) {
            return false;
        }
        // SAFETY: in bounds, as was checked; the buffer is borrowed and no part of the mapping.
        // Whoever writes the same range at this moment is another request in flight, and a client
        // that has both may get any mixture: the bytes have no meaning here.
        unsafe {
            let from = self.mapping.at(offset, buffer.len()).as_ptr();
            std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), buffer.len());
        }
        true
    }

    /// Copies to the file if all of the range is there.
    pub(crate) fn write(&self, data: &[u8], offset: u64) -> bool {
        if !self.can_touch(offset, data.len()) {
            return false;
        }
        // SAFETY: as in `read`.
        unsafe {
            let to = self.mapping.at(offset, data.len()).as_ptr();
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
        true
    }

    /// Has the processor fetch a range that is about to be read or written.
    pub(crate) fn prefetch(&self, offset: u64, length: usize) {
        self.mapping.prefetch(offset, length);
    }

    /// A range was written by a system call.
    pub(crate) fn note(&self, offset: u64, length: usize) {
        for page in touched(offset, length as u64, PAGE) {
            self.exist(page / CHUNK, 1 << (page % CHUNK));
        }
    }

    /// A range is about to be punched out.
    pub(crate) fn forget(&self, offset: u64, length: u64) {
        let chunks = touched(offset, length, PAGE * CHUNK);
        // A region without notes has nothing to forget.
        let known = chunks.filter_map(|index| {
            self.regions[(index / REGION) as usize]
                .get()
                .map(|notes| &notes[(index % REGION) as usize])
        });
        for chunk in known {
            // Some of its pages may stay: the kernel is asked again.
            chunk.exists.store(0, Ordering::Relaxed);
            chunk.ready.store(false, Ordering::Relaxed);
            chunk.asked.store(false, Ordering::Relaxed);
        }
    }

    fn can_touch(&self, offset: u64, length: usize) -> bool {
        self.is_sealed && self.mapping.reaches(offset, length) && self.is_ready(offset, length)
    }

    fn chunk(&self, index: u64) -> &Chunk {
        let make = || (0..REGION).map(|_| Chunk::default()).collect();
        &self.regions[(index / REGION) as usize].get_or_init(make)[(index % REGION) as usize]
    }

    /// The bytes of a chunk; the last one may be shorter.
    fn bytes(&self, index: u64) -> Range<usize> {
        let start = (index * CHUNK * PAGE) as usize;
        start..(start + (CHUNK * PAGE) as usize).min(self.mapping.len())
    }

    fn is_ready(&self, offset: u64, length: usize) -> bool {
        touched(offset, length as u64, PAGE * CHUNK).all(|index| {
            let chunk = self.chunk(index);
            chunk.ready.load(Ordering::Relaxed) || self.ask(index, chunk)
        })
    }

    /// Finds out what a predecessor left in a chunk, once. Whether that is all of it.
    fn ask(&self, index: u64, chunk: &Chunk) -> bool {
        if chunk.asked.load(Ordering::Relaxed) || chunk.asked.swap(true, Ordering::Relaxed) {
            return false;
        }
        let bytes = self.bytes(index);
        let mut pages = [0; CHUNK as usize];
        let pages = &mut pages[..bytes.len().div_ceil(PAGE as usize)];
        let is_known = self.mapping.residence(bytes.start as u64, bytes.len(), pages);
        let exist = pages.iter().rev().fold(0, |bits, &page| bits << 1 | u64::from(page));
        is_known && self.exist(index, exist)
    }

    /// Notes pages of a chunk. Whether that makes it ready.
    fn exist(&self, index: u64, pages: u64) -> bool {
        let chunk = self.chunk(index);
        let bytes = self.bytes(index);
        let beyond = u64::MAX.checked_shl(bytes.len().div_ceil(PAGE as usize) as u32).unwrap_or(0);
        let exist = chunk.exists.fetch_or(pages, Ordering::Relaxed) | pages | beyond;
        if exist != u64::MAX || chunk.ready.load(Ordering::Relaxed) {
            return exist == u64::MAX;
        }
        let advice = match self.is_writable {
            true => libc::MADV_POPULATE_WRITE,
            false => libc::MADV_POPULATE_READ,
        };
        // SAFETY: the range is a part of the mapping, and this only fills in page tables. Where
        // the kernel does not know it (before 5.14), pages are filled in as they are touched.
        unsafe {
            let start = self.mapping.at(bytes.start as u64, bytes.len()).as_ptr();
            libc::madvise(start.cast(), bytes.len(), advice);
        }
        chunk.ready.store(true, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use nix::fcntl::{FallocateFlags, fallocate};

    use super::*;
    use crate::storage::mem;
    use crate::testing::pattern;

    const CHUNK_SIZE: usize = (CHUNK * PAGE) as usize;
    /// The last chunk has a single page.
    const SIZE: u64 = 3 * CHUNK_SIZE as u64 + PAGE;

    fn memory() -> File {
        mem::make(SIZE).unwrap()
    }

    fn tmpfs_map(file: &File) -> TmpfsMap {
        TmpfsMap::sealed(file, SIZE).unwrap()
    }

    fn can_read(tmpfs_map: &TmpfsMap, offset: usize) -> bool {
        tmpfs_map.read(&mut [0; 512], offset as u64)
    }

    #[test]
    fn holes_are_left_to_system_calls_and_stay_holes() {
        let file = memory();
        let tmpfs_map = tmpfs_map(&file);
        assert!(!tmpfs_map.read(&mut [0; 8192], 4096));
        assert!(!tmpfs_map.write(&[1; 8192], 4096));
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn a_chunk_is_reached_once_all_of_it_was_written() {
        let file = memory();
        let tmpfs_map = tmpfs_map(&file);
        let data = pattern(CHUNK_SIZE - 4096, 3);
        file.write_all_at(&data, 0).unwrap();
        tmpfs_map.note(0, data.len());
        assert!(!can_read(&tmpfs_map, 0));
        file.write_all_at(&data[..512], data.len() as u64).unwrap();
        tmpfs_map.note(data.len() as u64, 512);
        let mut buffer = vec![0; data.len()];
        assert!(tmpfs_map.read(&mut buffer, 0));
        assert_eq!(buffer, data);
        assert!(!can_read(&tmpfs_map, CHUNK_SIZE));
        assert!(!tmpfs_map.read(&mut [0; 1024], CHUNK_SIZE as u64 - 512));
        let data = pattern(512, 9);
        assert!(tmpfs_map.write(&data, 5000));
        let mut buffer = vec![0; 512];
        file.read_exact_at(&mut buffer, 5000).unwrap();
        assert_eq!(buffer, data);
        assert_eq!(file.metadata().unwrap().blocks() * 512, CHUNK_SIZE as u64);
    }

    #[test]
    fn a_write_of_nothing_fills_no_hole() {
        let file = memory();
        let tmpfs_map = tmpfs_map(&file);
        tmpfs_map.note(4096, CHUNK_SIZE - 4096);
        tmpfs_map.note(100, 0);
        assert!(!can_read(&tmpfs_map, 4096));
        tmpfs_map.note(2 * SIZE + 100, 0);
    }

    #[test]
    fn what_a_predecessor_wrote_is_found() {
        let file = memory();
        let data = pattern(CHUNK_SIZE + 4096, 5);
        let offset = SIZE - data.len() as u64;
        file.write_all_at(&data, offset).unwrap();
        let tmpfs_map = tmpfs_map(&file);
        let mut buffer = vec![0; data.len()];
        assert!(tmpfs_map.read(&mut buffer, offset));
        assert_eq!(buffer, data);
        assert!(!tmpfs_map.read(&mut [0; 4096], offset - 4096));
    }

    #[test]
    fn what_was_punched_out_stays_a_hole_and_can_be_filled_again() {
        let file = memory();
        let tmpfs_map = tmpfs_map(&file);
        let all = vec![7; SIZE as usize];
        file.write_all_at(&all, 0).unwrap();
        assert!(can_read(&tmpfs_map, 0) && can_read(&tmpfs_map, CHUNK_SIZE));
        tmpfs_map.forget(4096, 4096);
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, mode, 4096, 4096).unwrap();
        assert!(!can_read(&tmpfs_map, 0) && can_read(&tmpfs_map, CHUNK_SIZE));
        assert_eq!(file.metadata().unwrap().blocks() * 512, SIZE - 4096);
        file.write_all_at(&all[..4096], 4096).unwrap();
        tmpfs_map.note(4096, 4096);
        assert!(can_read(&tmpfs_map, 4096));
    }

    #[test]
    fn what_is_fetched_is_not_touched() {
        let file = memory();
        let tmpfs_map = tmpfs_map(&file);
        for (offset, length) in [(0, 4096), (SIZE - 1, 1), (SIZE - 1, 4096), (u64::MAX, 1024)] {
            tmpfs_map.prefetch(offset, length);
        }
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        assert!(!can_read(&tmpfs_map, 0));
    }

    #[test]
    fn nothing_beyond_the_end_is_touched() {
        let file = memory();
        file.write_all_at(&vec![7; SIZE as usize], 0).unwrap();
        let tmpfs_map = tmpfs_map(&file);
        assert!(tmpfs_map.read(&mut [0; 4096], SIZE - 4096));
        assert!(!tmpfs_map.read(&mut [0; 8192], SIZE - 4096));
        assert!(!tmpfs_map.write(&[0; 4096], u64::MAX - 100));
    }

    #[test]
    fn of_an_ordinary_file_nothing_is_touched_but_lent() {
        let path = format!("/dev/shm/nbd-serve-mapped-{}", std::process::id());
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let tmpfs_map = TmpfsMap::unsealed(&file, SIZE, true).unwrap();
        assert!(tmpfs_map.range(0, 4096).is_none());
        let data = pattern(SIZE as usize, 3);
        file.write_all_at(&data, 0).unwrap();
        tmpfs_map.note(0, data.len());
        assert!(!can_read(&tmpfs_map, 0) && !tmpfs_map.write(&[1; 512], 0));
        let range = tmpfs_map.range(5000, 4096).unwrap();
        let mut buffer = [0; 4096];
        range.read(&mut buffer).unwrap();
        assert_eq!(buffer, data[5000..9096]);
        assert!(tmpfs_map.range(SIZE - 512, 1024).is_none());
        assert!(tmpfs_map.range_mut(5000, 4096).is_some());
        let read_only = TmpfsMap::unsealed(&file, SIZE, false).unwrap();
        assert!(read_only.range(5000, 4096).is_some() && read_only.range_mut(5000, 4096).is_none());
        tmpfs_map.forget(0, 4096);
        file.set_len(0).unwrap();
        assert!(range.read(&mut buffer).is_err());
        assert!(tmpfs_map.range(CHUNK_SIZE as u64, 4096).is_none(), "lent after a failure");
    }
}
