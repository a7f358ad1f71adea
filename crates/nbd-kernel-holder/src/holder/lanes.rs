//! Lanes: socket pairs between the driver and the backend, seen by the process that owns neither
//! end's traffic.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, setsockopt, shutdown, socketpair,
    sockopt,
};

use crate::system;

/// What a lane buffers toward the backend: all that the driver has in flight on one queue, 128
/// requests of 128 KiB. So the driver never blocks in the middle of a message, holding its
/// lock, because the backend is stopped.
const TOWARD_BACKEND: usize = 16 << 20;
/// What a lane buffers toward the driver, which always reads.
const TOWARD_KERNEL: usize = 4 << 20;
/// How much of the unread bytes a status looks at first; usually all that are there.
const PEEK: usize = 64 << 10;

/// The ends of new lanes: ours and the kernel's.
pub(crate) fn create(count: u32) -> io::Result<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let mut ours = Vec::new();
    let mut kernels = Vec::new();
    for _ in 0..count {
        let (server, kernel) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&kernel, sockopt::SndBufForce, &TOWARD_BACKEND)?;
        setsockopt(&server, sockopt::SndBufForce, &TOWARD_KERNEL)?;
        ours.push(server);
        kernels.push(kernel);
    }
    Ok((ours, kernels))
}

/// Ends a lane at once for both sides, whatever else holds a copy.
pub(crate) fn end(lane: BorrowedFd<'_>) {
    // Not connected any more: then it has ended already.
    let _ = shutdown(lane.as_raw_fd(), Shutdown::Both);
}

/// How many bytes the driver has sent and no backend has received; none if the lane has ended.
pub(crate) fn unread(lane: &OwnedFd) -> u64 {
    system::unread_bytes(lane.as_fd()).unwrap_or(0)
}

/// The bytes that the driver has sent and no backend has received, without taking them.
pub(crate) fn peek(lane: &OwnedFd) -> Vec<u8> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let mut room = PEEK;
    loop {
        // As large as needed: room for all that can be there would stay with this process.
        let mut bytes = vec![0; room];
        let count = recv(lane.as_raw_fd(), &mut bytes, flags).unwrap_or(0);
        if count < room || room >= TOWARD_BACKEND {
            bytes.truncate(count);
            return bytes;
        }
        room *= 4;
    }
}
