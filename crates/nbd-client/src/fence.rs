//! Making sure that an old connection, or an old server, writes no more.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nbd_net::{liveness, socket};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use rustix::process::Signal;

use crate::system;

/// How an attempt to fence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The peer has closed the connection, or is dead.
    Closed,
    /// It has not, within the limit. What it was sent may still be carried out.
    Open,
    /// Its machine does not answer: whether it still writes cannot be known.
    OutOfReach,
}

/// Fences a connection that a predecessor has left: tells the server that nothing more will come,
/// and throws its replies away until it has closed its end, too.
///
/// Call this before anything is sent over a new connection: see the
/// [crate's documentation](crate#fencing).
///
/// # Errors
///
/// If `connection` is no connected socket, or reading fails in another way than by its end.
#[expect(clippy::needless_pass_by_value, reason = "the connection is over")]
pub fn fence(connection: OwnedFd, limit: Duration) -> io::Result<Fence> {
    drain(connection.as_fd(), Instant::now().checked_add(limit))
}

/// Fences the server process that a predecessor has started: asks it to end, kills it when the
/// limit has passed, and waits until it is dead. What stands in front of a shell with several programs
/// kills these itself, and is only waited for. If it is killed by SIGKILL, its death tells nothing
/// of them, and nothing here tells that it was killed.
///
/// # Errors
///
/// If `process` is no pidfd, or may not be signalled.
#[expect(clippy::needless_pass_by_value, reason = "the process is over")]
pub fn fence_child(process: OwnedFd, limit: Duration) -> io::Result<Fence> {
    let last = match system::is_supervisor(process.as_fd()) {
        true => Signal::TERM,
        false => Signal::KILL,
    };
    for signal in [Signal::TERM, last] {
        system::signal_process(process.as_fd(), signal)?;
        if wait_readable(process.as_fd(), Instant::now().checked_add(limit))? {
            return Ok(Fence::Closed);
        }
    }
    Ok(Fence::Open)
}

/// Ends our side of a connection and reads until the peer has ended its own.
pub(crate) fn drain(connection: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<Fence> {
    match shutdown(connection.as_raw_fd(), Shutdown::Write) {
        // It was reset, or never connected.
        Err(Errno::ENOTCONN) => return Ok(Fence::Closed),
        other => other?,
    }
    if liveness::is_gone(connection, liveness::SILENCE) {
        // Or what is unsent arrives when the machine is back, after newer requests.
        socket::abort(connection)?;
        return Ok(Fence::OutOfReach);
    }
    let mut rubbish = vec![0; 64 << 10];
    loop {
        if !wait_readable(connection, deadline)? {
            return Ok(Fence::Open);
        }
        match recv(connection.as_raw_fd(), &mut rubbish, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::ECONNRESET | Errno::EPIPE | Errno::ENOTCONN) => {
                return Ok(Fence::Closed);
            }
            // Out of reach: its machine may still execute what it has received.
            Err(Errno::ETIMEDOUT | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
                return Ok(Fence::OutOfReach);
            }
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until there is something to read, or the end; `false` if the deadline passes first.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let rest = deadline.saturating_duration_since(Instant::now());
                // Rounded up, lest the last millisecond is spent in a loop.
                let rest = rest.as_millis() + u128::from(rest.subsec_nanos() % 1_000_000 != 0);
                PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Ok(false);
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}
