//! The system calls that neither std nor nix has.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// `linux/fs.h`: the size of a logical block.
const BLKSSZGET: libc::Ioctl = nix::request_code_none!(0x12, 104) as libc::Ioctl;
/// `linux/fs.h`: drops the content of a range.
const BLKDISCARD: libc::Ioctl = nix::request_code_none!(0x12, 119) as libc::Ioctl;

/// Reads what is in memory already, perhaps less than asked for; EAGAIN if nothing is.
pub(crate) fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the vector names a buffer that is borrowed for the length of the call and may be
    // written to.
    let count = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const vector,
            1,
            offset as libc::off_t,
            libc::RWF_NOWAIT,
        )
    };
    length(count)
}

/// Writes, perhaps less than asked for, and returns once that is durable.
pub(crate) fn write_durably(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
    let vector = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: the vector names data that is borrowed for the length of the call, which only
    // reads it.
    let count = unsafe {
        libc::pwritev2(
            file.as_raw_fd(),
            &raw const vector,
            1,
            offset as libc::off_t,
            libc::RWF_DSYNC,
        )
    };
    length(count)
}

/// Logical block size of a block device.
pub(crate) fn device_block_size(device: &File) -> io::Result<u32> {
    let mut size: c_int = 0;
    // SAFETY: this request stores one int, and only on a block device.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET, &raw mut size) })?;
    u32::try_from(size).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Drops the content of a range of a block device.
pub(crate) fn discard(device: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: this request reads two u64 and keeps no pointer to them.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) })
}

/// What direct I/O asks of offsets and lengths; 0 if it is not possible at all, nothing if the
/// kernel or the file system does not say.
pub(crate) fn direct_alignment(file: &File) -> Option<u32> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string, which with AT_EMPTY_PATH means the descriptor; the
    // kernel writes at most one statx to the buffer, in which all bit patterns are valid.
    let answer = unsafe {
        let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        let fd = file.as_raw_fd();
        let mask = libc::STATX_DIOALIGN;
        check(libc::statx(fd, path, flags, mask, answer.as_mut_ptr())).ok()?;
        answer.assume_init()
    };
    (answer.stx_mask & libc::STATX_DIOALIGN != 0).then_some(answer.stx_dio_offset_align)
}

/// Takes the lock of an open file description, for its whole life: nix's and std's guards would
/// give it up when they are dropped, although the holder still relies on it.
pub(crate) fn try_lock(file: &File, shared: bool) -> io::Result<()> {
    let kind = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    // SAFETY: takes two numbers.
    check(unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn length(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
