//! The driver's ioctls (`linux/nbd.h`), each valid on an open `/dev/nbdN`.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `_IO(0xab, number)`.
const fn number(number: u64) -> u64 {
    0xab << 8 | number
}

const SET_SOCK: u64 = number(0);
const SET_BLKSIZE: u64 = number(1);
const DO_IT: u64 = number(3);
const CLEAR_SOCK: u64 = number(4);
const SET_SIZE_BLOCKS: u64 = number(7);
const DISCONNECT: u64 = number(8);
const PRINT_DEBUG: u64 = number(6);
const SET_FLAGS: u64 = number(10);

fn nbd_ioctl(device: BorrowedFd<'_>, request: u64, argument: u64) -> Result<(), Errno> {
    // SAFETY: every NBD ioctl takes a plain number, never a pointer, so there is no memory that
    // the kernel could read or write through it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request as _, argument) };
    Errno::result(result).map(drop)
}

/// `NBD_SET_SOCK`: adds a connected stream socket. All of a device's must come from one thread.
pub(crate) fn set_sock(device: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    nbd_ioctl(device, SET_SOCK, socket.as_raw_fd() as u64)
}

/// `NBD_SET_BLKSIZE`: a power of two, 512 to the page size.
pub(crate) fn set_block_size(device: BorrowedFd<'_>, bytes: u32) -> Result<(), Errno> {
    nbd_ioctl(device, SET_BLKSIZE, bytes.into())
}

/// `NBD_SET_SIZE_BLOCKS`: the size in blocks of the size set before.
pub(crate) fn set_size_blocks(device: BorrowedFd<'_>, blocks: u64) -> Result<(), Errno> {
    nbd_ioctl(device, SET_SIZE_BLOCKS, blocks)
}

/// `NBD_SET_FLAGS`: transmission flags.
pub(crate) fn set_flags(device: BorrowedFd<'_>, flags: u16) -> Result<(), Errno> {
    nbd_ioctl(device, SET_FLAGS, flags.into())
}

/// `NBD_DO_IT`: returns when the connection is over, or when a signal arrives.
pub(crate) fn do_it(device: BorrowedFd<'_>) -> Result<(), Errno> {
    nbd_ioctl(device, DO_IT, 0)
}

/// `NBD_CLEAR_SOCK`: fails what is in flight and forgets the sockets.
pub(crate) fn clear_sock(device: BorrowedFd<'_>) -> Result<(), Errno> {
    nbd_ioctl(device, CLEAR_SOCK, 0)
}

/// `NBD_DISCONNECT`: sends NBD_CMD_DISC on every socket. May block on a full one.
pub(crate) fn disconnect(device: BorrowedFd<'_>) -> Result<(), Errno> {
    nbd_ioctl(device, DISCONNECT, 0)
}

/// `NBD_PRINT_DEBUG`: does nothing, under the driver's lock. Refused for a netlink device, under the
/// same lock.
pub(crate) fn print_debug(device: BorrowedFd<'_>) -> Result<(), Errno> {
    nbd_ioctl(device, PRINT_DEBUG, 0)
}
