//! Receiving and sending with the message header in the ledger. The other module of this crate
//! that may say `unsafe`.
//!
//! `recvmmsg(2)` and `sendmmsg(2)` with a vector of one message store the byte count into
//! `msg_len` before they return to user space, and a SIGKILL takes effect only on that return
//! (`net/socket.c`, `do_recvmmsg` and `__sys_sendmmsg`). So the ledger always tells how many
//! bytes passed, at whatever moment the process dies. The store itself must not wait for a page:
//! see `Map::lock_control_pages`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;

use crate::layout::Message;

/// Prepares a message record that is not the valid one: no bytes have passed yet.
pub(crate) fn reset(message: &Message) {
    for word in &message.header {
        word.store(0, Ordering::Relaxed);
    }
    message.padding.store(0, Ordering::Relaxed);
    // Before the epoch that makes this record valid: a stale count would be folded in.
    message.msg_len.store(0, Ordering::Release);
}

/// Points the message at `iov` and runs `call` on it; the result is the bytes that passed.
fn transfer(
    message: &Message,
    iov: &mut libc::iovec,
    call: impl FnOnce(*mut libc::mmsghdr) -> libc::c_long,
) -> io::Result<u32> {
    // The kernel reads `msg_iov` (byte 16) and `msg_iovlen` (byte 24) only; the rest stays zero.
    message.header[2].store(std::ptr::from_mut(iov) as u64, Ordering::Relaxed);
    message.header[3].store(1, Ordering::Release);
    let header: *const Message = message;
    match call(header.cast_mut().cast()) {
        1 => Ok(message.msg_len.load(Ordering::Acquire)),
        -1 => Err(io::Error::last_os_error()),
        other => Err(io::Error::other(format!("one message gave {other}"))),
    }
}

/// Receives into `window`. 0 means that the peer has closed.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    message: &Message,
    mut window: libc::iovec,
) -> io::Result<u32> {
    transfer(message, &mut window, |header| {
        // SAFETY: `header` points to 64 bytes laid out as a `struct mmsghdr` (asserted in
        // `layout`), made of atomics, so that the kernel may store into them; its one iovec
        // lives in the caller's frame and describes free ring space (see `Ring::window`).
        unsafe {
            let timeout = std::ptr::null_mut::<libc::timespec>();
            libc::syscall(libc::SYS_recvmmsg, socket.as_raw_fd(), header, 1, 0, timeout)
        }
    })
}

/// Sends `bytes`, which lie in the transmit area.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &Message, bytes: &[u8]) -> io::Result<u32> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    transfer(message, &mut iov, |header| {
        // SAFETY: as in `receive`; the kernel only reads what the iovec describes, which is
        // borrowed for the call.
        unsafe {
            let flags = libc::MSG_NOSIGNAL;
            libc::syscall(libc::SYS_sendmmsg, socket.as_raw_fd(), header, 1, flags)
        }
    })
}

/// Dies by SIGKILL at a crash point.
#[cfg(feature = "crash-points")]
pub(crate) fn die() -> ! {
    // SAFETY: plain system calls without memory arguments.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
        libc::_exit(137)
    }
}
