//! A file in this process's memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nbd_backend::{MappedRange, MappingOwner};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munlock, munmap};

/// Size of a page in bytes.
pub(crate) const PAGE: u64 = 4096;
/// Ranges of these lengths are worth being fetched before they are needed: of longer ones the processor
/// itself fetches what comes next, and those that are too short are there at once.
const WORTH_FETCHING: RangeInclusive<usize> = 1 << 10..=8 << 10;
/// Bytes that the processor fetches at once.
const LINE: usize = 64;
/// What mincore(2) tells of a page: it is in memory.
const RESIDENT: u8 = 1;

/// A mapping that others share: who changes the file changes this as well.
#[derive(Debug)]
pub(crate) struct Mapping {
    file: File,
    start: NonNull<u8>,
    len: usize,
    /// A range could not be sent from here.
    has_failed: AtomicBool,
}

// SAFETY: the mapping is an address range of the process, valid in all its threads. Nothing here
// refers to its bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `size` bytes, which need not exist.
    pub(crate) fn new(file: &File, size: u64, protection: ProtFlags) -> io::Result<Arc<Self>> {
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let len = usize::try_from(size).ok().and_then(NonZeroUsize::new).ok_or_else(too_long)?;
        let file = file.try_clone()?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let start = unsafe { mmap(None, len, protection, flags, file.as_fd(), 0)? };
        // What belongs to the device may be swapped out like any other data, though all else of
        // this process is locked. Where nothing was locked this does nothing.
        // SAFETY: the range was just mapped; locks change nothing that the program sees.
        let _ = unsafe { munlock(start, len.get()) };
        Ok(Arc::new(Self {
            file,
            start: start.cast(),
            len: len.get(),
            has_failed: AtomicBool::new(false),
        }))
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether a range lies within it.
    pub(crate) fn reaches(&self, offset: u64, length: usize) -> bool {
        offset.checked_add(length as u64).is_some_and(|end| end <= self.len as u64)
    }

    /// The address of a range that lies within it.
    pub(crate) fn at(&self, offset: u64, length: usize) -> NonNull<u8> {
        assert!(self.reaches(offset, length), "a range beyond the mapping");
        // SAFETY: within the mapping, as was checked.
        unsafe { self.start.add(offset as usize) }
    }

    /// A range that lies within it, to be sent from there. `None` once that went wrong: somebody
    /// has cut the file off, and whoever reads it the other way is told so.
    pub(crate) fn range(self: &Arc<Self>, offset: u64, length: usize) -> Option<MappedRange> {
        if self.has_failed.load(Ordering::Relaxed) {
            return None;
        }
        let owner: Arc<dyn MappingOwner> = Arc::<Self>::clone(self);
        // SAFETY: the range stays mapped until this is dropped, and the range keeps it.
        Some(unsafe { MappedRange::new(self.at(offset, length), length, offset, owner) })
    }

    /// Has the processor fetch a range into its second cache. Nothing happens where there is no page
    /// or no range; nobody waits.
    pub(crate) fn prefetch(&self, offset: u64, length: usize) {
        if WORTH_FETCHING.contains(&length) && self.reaches(offset, length) {
            let start = self.at(offset, length);
            for at in (0..length).step_by(LINE) {
                // SAFETY: within the mapping, as was checked.
                fetch(unsafe { start.add(at) });
            }
        }
    }

    /// Tells of every page of a range whether it is in memory, or `false` if that is not to be
    /// known. The range begins with a page, and there is a byte for each.
    pub(crate) fn residence(&self, offset: u64, length: usize, pages: &mut [u8]) -> bool {
        assert_eq!(pages.len(), length.div_ceil(PAGE as usize), "a byte for each page");
        let start = self.at(offset, length);
        // SAFETY: the range is a part of the mapping, and the answer has a byte for each page.
        let asked = unsafe { libc::mincore(start.as_ptr().cast(), length, pages.as_mut_ptr()) };
        for page in pages {
            *page &= RESIDENT;
        }
        asked == 0
    }
}

#[cfg(target_arch = "x86_64")]
fn fetch(address: NonNull<u8>) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

    // SAFETY: a hint, which x86-64 knows, and which faults nowhere, whatever is or is not mapped there.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.as_ptr().cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn fetch(_address: NonNull<u8>) {}

impl MappingOwner for Mapping {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.file.read_exact_at(buffer, offset);
        read.inspect_err(|_| self.has_failed.store(true, Ordering::Relaxed))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this object, and nothing refers to it.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}
