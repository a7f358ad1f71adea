//! Memory reached without a system call: mapped, where it is certain that the pages exist.
//!
//! To touch a page that is not there would make it, though a hole takes up no room when it is
//! read the other way; and where there is no memory left for it, the process would be killed by
//! SIGBUS instead of a write failing with ENOSPC. So this keeps a note of the pages that exist.
//! It may know too little, and then the caller uses a system call; a page that is noted and was
//! punched out meanwhile comes back as zeroes, which is what a hole reads as.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munlock, munmap};

const PAGE: u64 = 4096;
/// The kernel is asked about so many pages at once.
const CHUNK: u64 = 512;
/// Pages of a region, whose notes are made when it is first used: 1 GiB.
const REGION: u64 = 1 << 18;

/// A mapped file that no one can truncate.
#[derive(Debug)]
pub(crate) struct Mapped {
    start: NonNull<u8>,
    length: usize,
    regions: Vec<OnceLock<Notes>>,
}

// SAFETY: the mapping is an address range of the process, valid in all its threads. Its bytes are
// copied and never referred to, and all else is atomic.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

/// What is known about the pages of a region.
#[derive(Debug)]
struct Notes {
    /// A bit for each chunk: the kernel was asked.
    asked: Box<[AtomicU64]>,
    /// A bit for each page: it exists.
    exists: Box<[AtomicU64]>,
}

impl Notes {
    fn new() -> Self {
        let bits = |count: u64| (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { asked: bits(REGION / CHUNK), exists: bits(REGION) }
    }
}

fn bit(bits: &[AtomicU64], index: u64) -> (&AtomicU64, u64) {
    (&bits[(index / 64) as usize], 1 << (index % 64))
}

fn is_set(bits: &[AtomicU64], index: u64) -> bool {
    let (word, mask) = bit(bits, index);
    word.load(Ordering::Relaxed) & mask != 0
}

/// The pages that a range touches.
fn pages(offset: u64, length: usize) -> std::ops::Range<u64> {
    offset / PAGE..(offset + length as u64).div_ceil(PAGE)
}

impl Mapped {
    /// Maps `size` bytes of a file that is sealed against shrinking.
    pub(crate) fn new(file: &File, size: u64) -> io::Result<Self> {
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let length = usize::try_from(size).ok().and_then(NonZeroUsize::new).ok_or_else(too_long)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let start = unsafe { mmap(None, length, protection, flags, file, 0)? };
        // What belongs to the device may be swapped out like any other data, though all else of
        // this process is locked. Where nothing was locked this does nothing.
        // SAFETY: the range was just mapped; locks change nothing that the program sees.
        let _ = unsafe { munlock(start, length.get()) };
        let regions = (0..size.div_ceil(PAGE * REGION)).map(|_| OnceLock::new()).collect();
        Ok(Self { start: start.cast(), length: length.get(), regions })
    }

    /// Copies from the file if all of the range is there.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> bool {
        if !self.reaches(offset, buffer.len()) || !self.exist(offset, buffer.len()) {
            return false;
        }
        // SAFETY: in bounds, as was checked; the buffer is borrowed and no part of the mapping.
        // Whoever writes the same range at this moment is another request in flight, and a client
        // that has both may get any mixture: the bytes have no meaning here.
        unsafe {
            let from = self.start.as_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), buffer.len());
        }
        true
    }

    /// Copies to the file if all of the range is there.
    pub(crate) fn write(&self, data: &[u8], offset: u64) -> bool {
        if !self.reaches(offset, data.len()) || !self.exist(offset, data.len()) {
            return false;
        }
        // SAFETY: as in `read`.
        unsafe {
            let to = self.start.as_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
        true
    }

    /// A range was written by a system call.
    pub(crate) fn note(&self, offset: u64, length: usize) {
        for page in pages(offset, length) {
            let (word, mask) = bit(&self.notes(page).exists, page % REGION);
            word.fetch_or(mask, Ordering::Relaxed);
        }
    }

    /// A range is about to be punched out.
    pub(crate) fn forget(&self, offset: u64, length: u64) {
        for page in offset / PAGE..(offset + length).div_ceil(PAGE) {
            // A region without notes has nothing to forget.
            if let Some(notes) = self.regions[(page / REGION) as usize].get() {
                let (word, mask) = bit(&notes.exists, page % REGION);
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }

    fn reaches(&self, offset: u64, length: usize) -> bool {
        offset.checked_add(length as u64).is_some_and(|end| end <= self.length as u64)
    }

    fn notes(&self, page: u64) -> &Notes {
        self.regions[(page / REGION) as usize].get_or_init(Notes::new)
    }

    fn exist(&self, offset: u64, length: usize) -> bool {
        pages(offset, length).all(|page| {
            let notes = self.notes(page);
            is_set(&notes.exists, page % REGION) || self.ask(notes, page)
        })
    }

    /// Finds out what a predecessor left in the chunk of a page, once. Whether the page exists.
    fn ask(&self, notes: &Notes, page: u64) -> bool {
        let (word, mask) = bit(&notes.asked, page % REGION / CHUNK);
        if word.fetch_or(mask, Ordering::Relaxed) & mask != 0 {
            return false;
        }
        let first = page / CHUNK * CHUNK;
        let start = (first * PAGE) as usize;
        let length = (CHUNK * PAGE).min((self.length - start) as u64) as usize;
        let mut answer = [0; CHUNK as usize];
        // SAFETY: the range is a part of the mapping, and the answer has a byte for each page.
        let asked = unsafe {
            libc::mincore(self.start.as_ptr().add(start).cast(), length, answer.as_mut_ptr())
        };
        if asked != 0 {
            return false;
        }
        for (page, _) in (first..).zip(answer).filter(|(_, answer)| answer & 1 != 0) {
            let (word, mask) = bit(&notes.exists, page % REGION);
            word.fetch_or(mask, Ordering::Relaxed);
        }
        is_set(&notes.exists, page % REGION)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this object, and nothing refers to it.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::mem;
    use crate::testing::pattern;

    const SIZE: u64 = 4 << 20;

    fn memory() -> File {
        mem::make(SIZE).unwrap()
    }

    fn mapped(file: &File) -> Mapped {
        Mapped::new(file, SIZE).unwrap()
    }

    #[test]
    fn holes_are_left_to_system_calls_and_stay_holes() {
        let file = memory();
        let mapped = mapped(&file);
        assert!(!mapped.read(&mut [0; 8192], 4096));
        assert!(!mapped.write(&[1; 8192], 4096));
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn what_was_written_by_system_calls_is_mapped_and_what_lies_beside_is_not() {
        let file = memory();
        let mapped = mapped(&file);
        let data = pattern(8192, 3);
        file.write_all_at(&data, 4096).unwrap();
        mapped.note(4096, 8192);
        let mut buffer = vec![0; 8192];
        assert!(mapped.read(&mut buffer, 4096));
        assert_eq!(buffer, data);
        assert!(!mapped.read(&mut buffer, 8192));
        let data = pattern(512, 9);
        assert!(mapped.write(&data, 5000));
        let mut buffer = vec![0; 512];
        file.read_exact_at(&mut buffer, 5000).unwrap();
        assert_eq!(buffer, data);
    }

    #[test]
    fn what_a_predecessor_wrote_is_found() {
        let file = memory();
        let data = pattern(4096, 5);
        file.write_all_at(&data, SIZE - 4096).unwrap();
        let mapped = mapped(&file);
        let mut buffer = vec![0; 4096];
        assert!(mapped.read(&mut buffer, SIZE - 4096));
        assert_eq!(buffer, data);
        assert!(!mapped.read(&mut buffer, SIZE - 8192));
    }

    #[test]
    fn what_is_forgotten_is_left_to_system_calls_again() {
        let file = memory();
        let mapped = mapped(&file);
        file.write_all_at(&[7; 8192], 0).unwrap();
        assert!(mapped.read(&mut [0; 8192], 0));
        mapped.forget(0, 4096);
        assert!(mapped.read(&mut [0; 4096], 4096));
        assert!(!mapped.read(&mut [0; 4096], 0));
    }

    #[test]
    fn nothing_beyond_the_end_is_touched() {
        let file = memory();
        let mapped = mapped(&file);
        assert!(!mapped.read(&mut [0; 8192], SIZE - 4096));
        assert!(!mapped.write(&[0; 4096], u64::MAX - 100));
    }
}
