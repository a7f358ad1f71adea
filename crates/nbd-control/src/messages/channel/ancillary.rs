//! What comes with the bytes of a unix stream: descriptors, and what the kernel says of their sender.
//!
//! Received here and not by nix, which hands out nothing once a message was cut off and so leaks the
//! descriptors that came before the cut; and which does not know `SCM_PIDFD`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc::{self, c_int, c_void, msghdr};
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt};

/// `SCM_PIDFD` of the kernel's `linux/socket.h`, since 6.5: the sender's process.
const SCM_PIDFD: c_int = 4;
/// Room for all that can come with one message: 253 descriptors (`SCM_MAX_FD`), credentials, a pidfd.
const ROOM_BYTES: usize = 2048;

/// Who has sent something, as the kernel saw it.
#[derive(Debug)]
pub struct Sender {
    /// Process, user and group.
    pub credentials: UnixCredentials,
    /// A pidfd of the process, from kernels since 6.5. Without it another process may have that number by now.
    pub process: Option<OwnedFd>,
}

/// What came with some bytes.
#[derive(Debug, Default)]
pub(super) struct Ancillary {
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) sender: Option<Sender>,
    /// The table of descriptors is full, so some are lost.
    pub(super) is_cut: bool,
}

/// Whether the kernel hands out the sender's process with what is received, if it can. On for a receive only and
/// not for a [look](peek): the pidfd comes behind the descriptors, which would take the room that it needs.
fn pass_pidfd(stream: BorrowedFd<'_>, on: bool) -> nix::Result<()> {
    let on = c_int::from(on);
    // SAFETY: the option is one int, which outlives the call.
    let result = unsafe {
        let (level, option, length) =
            (libc::SOL_SOCKET, libc::SO_PASSPIDFD, size_of::<c_int>() as libc::socklen_t);
        libc::setsockopt(stream.as_raw_fd(), level, option, (&raw const on).cast(), length)
    };
    match nix::Error::result(result) {
        // A kernel before 6.5.
        Err(nix::Error::ENOPROTOOPT) => Ok(()),
        result => result.map(drop),
    }
}

/// Receives without waiting; nothing if the peer has closed. `identify`: with the process of the sender.
pub(super) fn receive(
    stream: BorrowedFd<'_>,
    buffer: &mut [u8],
    identify: bool,
) -> io::Result<(usize, Ancillary)> {
    if identify {
        pass_pidfd(stream, true)?;
    }
    let mut room = [0u64; ROOM_BYTES / 8];
    let received = recvmsg(stream, buffer, &mut room, ROOM_BYTES, 0);
    let received = received.map(|(count, header)| {
        let is_cut = header.msg_flags & libc::MSG_CTRUNC != 0;
        (count, Ancillary { is_cut, ..take(&header) })
    });
    if identify {
        pass_pidfd(stream, false)?;
    }
    received
}

/// What a look at the next bytes has found.
pub(super) enum Peeked {
    /// So many can be received, and no descriptor comes with them.
    Bytes(usize),
    /// Descriptors come with them.
    Descriptors,
}

/// Looks at the next bytes, which stay where they are. No descriptor is installed: whatever comes, closing it is
/// not ours to do.
pub(super) fn peek(stream: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Peeked> {
    // Exactly what the kernel wants to say besides, so that anything more is cut off.
    let bytes = match getsockopt(&stream, sockopt::PassCred)? {
        // SAFETY: plain arithmetic.
        true => unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as libc::c_uint) as usize },
        false => 0,
    };
    let mut room = [0u64; ROOM_BYTES / 8];
    let (count, header) = recvmsg(stream, buffer, &mut room, bytes, libc::MSG_PEEK)?;
    Ok(match header.msg_flags & libc::MSG_CTRUNC {
        0 => Peeked::Bytes(count),
        _ => Peeked::Descriptors,
    })
}

/// `room_bytes` of `room` are for what comes with the bytes.
fn recvmsg(
    stream: BorrowedFd<'_>,
    buffer: &mut [u8],
    room: &mut [u64; ROOM_BYTES / 8],
    room_bytes: usize,
    flags: c_int,
) -> io::Result<(usize, msghdr)> {
    let mut slice =
        libc::iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() };
    // SAFETY: all fields are numbers and pointers, for which zero is a value.
    let mut header: msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = room.as_mut_ptr().cast();
    header.msg_controllen = room_bytes.min(ROOM_BYTES) as _;
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header names one slice and the room, which are as long as it says and outlive the call.
    let count = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut header, flags) };
    match usize::try_from(count) {
        Ok(count) => Ok((count, header)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Makes all ours that the kernel has just put into the room of `header`, so that no descriptor leaks
/// whatever follows.
fn take(header: &msghdr) -> Ancillary {
    let mut ancillary = Ancillary::default();
    let (mut credentials, mut process) = (None, None);
    // SAFETY: the kernel has filled the room, which still exists, and `msg_controllen` says how far.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !part.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give a header inside the room or null.
        let (level, kind, bytes, data) = unsafe {
            let bytes = ((*part).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            ((*part).cmsg_level, (*part).cmsg_type, bytes, libc::CMSG_DATA(part))
        };
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for index in 0..bytes / size_of::<c_int>() {
                    // SAFETY: as many numbers as the part says it has.
                    let number = unsafe { data.cast::<c_int>().add(index).read_unaligned() };
                    ancillary.descriptors.extend(adopt(number));
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if bytes >= size_of::<libc::ucred>() => {
                // SAFETY: the part is as long as the structure, which is all numbers.
                credentials = Some(unsafe { data.cast::<libc::ucred>().read_unaligned() });
            }
            (libc::SOL_SOCKET, SCM_PIDFD) if bytes >= size_of::<c_int>() => {
                // SAFETY: the part has one number.
                process = adopt(unsafe { data.cast::<c_int>().read_unaligned() });
            }
            _ => {}
        }
        // SAFETY: as CMSG_FIRSTHDR.
        part = unsafe { libc::CMSG_NXTHDR(header, part) };
    }
    ancillary.sender =
        credentials.map(|credentials| Sender { credentials: credentials.into(), process });
    ancillary
}

/// A descriptor that was received. A negative number is the error for which there is none.
fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the kernel has just installed it in our table for this message, and nothing else knows its
    // number.
    (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}
