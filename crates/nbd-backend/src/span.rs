//! Storage that is sent from where it lies in memory, or received to there.
//!
//! A read is copied twice on its way, into a buffer and from there into the socket, and so is a
//! write. Where the storage is mapped into the process one copy is enough, if it is the kernel that
//! makes it: it does not mind that bytes change meanwhile, and where a page has gone, because
//! somebody cut the file off perhaps, its answer is EFAULT, where the process would be killed by
//! SIGBUS.
#![allow(unsafe_code)]

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Whoever keeps a span's memory mapped.
pub trait Lender: Send + Sync + 'static {
    /// Fills a buffer from `offset` of the storage, on a way that tells errors.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A range of the storage, where it lies in memory.
pub struct Span {
    start: NonNull<u8>,
    len: usize,
    offset: u64,
    lender: Arc<dyn Lender>,
}

// SAFETY: addresses are the same in all threads, and nothing but system calls goes there.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    /// `len` bytes, of which the first is at `offset` of the storage.
    ///
    /// # Safety
    ///
    /// The bytes from `start` on must be mapped for as long as the lender lives. Pages may be
    /// missing, and anybody may change them.
    pub unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        offset: u64,
        lender: Arc<dyn Lender>,
    ) -> Self {
        Self { start, len, offset, lender }
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

    /// Forgets the first bytes.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len, "consuming more than there is");
        // SAFETY: the result lies in the mapping, or one byte behind it.
        self.start = unsafe { self.start.add(count) };
        self.len -= count;
        self.offset += count as u64;
    }

    /// Whether a system call failed because a page of some span has gone.
    #[must_use]
    pub fn is_gone(error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EFAULT)
    }

    /// For sendmsg(2) and the like. Where that [fails](Self::is_gone), [`read`](Self::read) tells why.
    ///
    /// # Safety
    ///
    /// Nobody but the kernel may look at the bytes.
    #[must_use]
    pub unsafe fn io_slice(&self) -> IoSlice<'_> {
        // SAFETY: the range is mapped while the lender lives, and thus for longer than the slice.
        // Its bytes may change or be missing, which matters to whoever looks; the caller does not.
        IoSlice::new(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) })
    }

    /// The same for recvmsg(2), where the storage may be written to.
    ///
    /// # Safety
    ///
    /// Nobody but the kernel may look at the bytes or change them.
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

    /// Copies all of it; `buffer` has the same length.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.lender.read_at(buffer, self.offset)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
