//! Ranges of the storage in mapped memory, which are sent or received without a copy in between.
//!
//! A read is otherwise copied twice, into a buffer and from there into the socket, and so is a
//! write. With mapped storage the kernel makes the only copy, which tolerates two things that this
//! process does not: bytes that change meanwhile, and pages that are gone because the file was
//! truncated. For those a system call returns EFAULT, where an access here would be a SIGBUS.
#![allow(unsafe_code)]

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// The owner of a mapping. The mapping lives as long as this.
pub trait MappingOwner: Send + Sync + 'static {
    /// Fills a buffer from `offset` of the storage by a system call, which reports errors where the
    /// mapping would raise SIGBUS.
    ///
    /// # Errors
    ///
    /// Those of the read, and `UnexpectedEof` if the storage ends before the range.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A range of the storage in mapped memory.
pub struct MappedRange {
    start: NonNull<u8>,
    len: usize,
    offset: u64,
    owner: Arc<dyn MappingOwner>,
}

// SAFETY: addresses are the same in all threads, and nothing but system calls goes there.
unsafe impl Send for MappedRange {}
// SAFETY: as above.
unsafe impl Sync for MappedRange {}

impl MappedRange {
    /// `len` bytes, of which the first is at `offset` of the storage.
    ///
    /// # Safety
    ///
    /// The bytes from `start` on must be mapped for as long as the owner lives. Pages may be
    /// missing, and other processes may change them.
    pub unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        offset: u64,
        owner: Arc<dyn MappingOwner>,
    ) -> Self {
        Self { start, len, offset, owner }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Removes the first bytes.
    ///
    /// # Panics
    ///
    /// If `count` is greater than the length.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len, "consuming more than there is");
        // SAFETY: the result lies in the mapping, or one byte behind it.
        self.start = unsafe { self.start.add(count) };
        self.len -= count;
        self.offset += count as u64;
    }

    /// Whether a system call failed because a page of a range is gone.
    #[must_use]
    pub fn is_gone(error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EFAULT)
    }

    /// For sendmsg(2) and the like. If that [fails](Self::is_gone), [`read`](Self::read) returns
    /// the cause.
    ///
    /// # Safety
    ///
    /// Only the kernel may read the bytes, not this process.
    #[must_use]
    pub unsafe fn io_slice(&self) -> IoSlice<'_> {
        // SAFETY: the range is mapped while the owner lives, and thus for longer than the slice.
        // Its bytes may change or be missing; the caller promises not to read them.
        IoSlice::new(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) })
    }

    /// The same for recvmsg(2), where the storage may be written to.
    ///
    /// # Safety
    ///
    /// Only the kernel may read or write the bytes, not this process.
    #[must_use]
    pub unsafe fn io_slice_mut(&mut self) -> IoSliceMut<'_> {
        // SAFETY: as in `io_slice`. Others may change the bytes at the same time, as well as
        // the kernel; nothing of this process relies on what they are.
        IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) })
    }

    /// Where the range begins in the storage, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Copies the range to `buffer`, which has the same length.
    ///
    /// # Errors
    ///
    /// Those of [`MappingOwner::read_at`].
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.owner.read_at(buffer, self.offset)
    }
}

impl fmt::Debug for MappedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedRange")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
