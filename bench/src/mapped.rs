//! Storage that is mapped in memory, and moved between there and a socket without a copy of our own.
//!
//! Several connections may read and write the same bytes at once; the kernel and plain copies do not
//! mind, and nothing here looks at them.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

/// Storage that lives as long as the process.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range that is valid in all threads until the process ends.
unsafe impl Send for Mapped {}
// SAFETY: as above; nothing here makes a reference to its bytes.
unsafe impl Sync for Mapped {}

/// Parts of a message: bytes of the program and bytes of the storage, in the order in which they are sent.
#[derive(Debug, Default)]
pub struct Message(Vec<libc::iovec>);

impl Mapped {
    /// Memory that is all there.
    ///
    /// # Errors
    ///
    /// `len` is 0, or there is not so much memory.
    pub fn memory(len: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let start = unsafe { mmap_anonymous(None, length, READ_WRITE, flags)? };
        Ok(Self { start: start.cast(), len })
    }

    /// A file, which must not get shorter.
    ///
    /// # Errors
    ///
    /// The file is empty, or cannot be mapped for reading and writing.
    pub fn file(file: &File) -> io::Result<Self> {
        let len = file.metadata()?.len() as usize;
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: as above.
        let start = unsafe { mmap(None, length, READ_WRITE, flags, file, 0)? };
        Ok(Self { start: start.cast(), len })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.len as u64
    }

    /// The address of a range.
    fn range(&self, offset: u64, length: usize) -> io::Result<*mut u8> {
        let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(length));
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range lies within the mapping.
        Ok(unsafe { self.start.as_ptr().add(offset as usize) })
    }

    /// Stores bytes.
    ///
    /// # Errors
    ///
    /// The range goes beyond the end.
    pub fn store(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let to = self.range(offset, bytes.len())?;
        // SAFETY: `to` has room for as many, outside of any Rust object. Other threads may store there
        // at the same time, and then either byte remains: that is what their clients asked for.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Receives a whole range.
    ///
    /// # Errors
    ///
    /// The range goes beyond the end, or the peer disconnects before all of it has come.
    pub fn receive(&self, socket: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<()> {
        let to = self.range(offset, length)?;
        let mut done = 0;
        while done < length {
            // SAFETY: the kernel writes within the mapping.
            let count =
                unsafe { libc::recv(socket.as_raw_fd(), to.add(done).cast(), length - done, 0) };
            match Errno::result(count) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count as usize,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

impl Message {
    /// So many parts fit in one message.
    pub const MOST: usize = 1024;

    /// How many parts it has.
    pub fn parts(&self) -> usize {
        self.0.len()
    }

    /// Appends a range of the storage.
    ///
    /// # Errors
    ///
    /// The range goes beyond the end.
    pub fn push_range(&mut self, storage: &Mapped, offset: u64, length: usize) -> io::Result<()> {
        let base = storage.range(offset, length)?;
        self.0.push(libc::iovec { iov_base: base.cast(), iov_len: length });
        Ok(())
    }

    /// Appends bytes that [`send`](Self::send) gets: the next `length` of them.
    pub fn push_bytes(&mut self, length: usize) {
        self.0.push(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: length });
    }

    /// Sends all of it, and is empty then. `bytes` are those of [`push_bytes`](Self::push_bytes).
    ///
    /// # Errors
    ///
    /// Those of sendmsg(2).
    pub fn send(&mut self, socket: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
        for part in self.0.iter_mut().filter(|part| part.iov_base.is_null()) {
            let (these, rest) = bytes.split_at(part.iov_len);
            part.iov_base = these.as_ptr().cast_mut().cast();
            bytes = rest;
        }
        let mut parts = &mut self.0[..];
        while !parts.is_empty() {
            // SAFETY: a message header of zeroes names nothing.
            let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
            header.msg_iov = parts.as_mut_ptr();
            header.msg_iovlen = parts.len() as _;
            // SAFETY: all parts lie in `bytes` or in the mapping, and both live.
            let sent =
                unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
            match Errno::result(sent) {
                Ok(count) => parts = advance(parts, count as usize),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.0.clear();
        Ok(())
    }
}

/// What is left of the parts after so many bytes.
fn advance(mut parts: &mut [libc::iovec], mut count: usize) -> &mut [libc::iovec] {
    while let Some(first) = parts.first_mut() {
        if count < first.iov_len {
            // SAFETY: within the part.
            first.iov_base = unsafe { first.iov_base.byte_add(count) };
            first.iov_len -= count;
            break;
        }
        count -= first.iov_len;
        parts = &mut parts[1..];
    }
    parts
}
