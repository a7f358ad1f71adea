//! Whether the machine at the other end still answers.
//!
//! A peer that is stopped, in a debugger for example, is waited for: its machine acknowledges
//! what it is sent. A machine that has vanished acknowledges nothing. While the connection is
//! idle, TCP's keepalive notices; but as long as something is unacknowledged there is no keepalive,
//! and TCP goes on for a quarter of an hour. TCP_USER_TIMEOUT is no way out: it also ends a
//! connection whose peer acknowledges everything and has no more room.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// How often to look.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// A machine that is silent for so long, unless the caller has another limit ...
pub const SILENCE: Duration = Duration::from_secs(60);
/// ... while it was asked so often has vanished.
const QUESTIONS: u8 = 3;

/// What TCP knows of the other end.
#[derive(Clone, Copy, Debug)]
struct TcpStats {
    /// Retransmissions in a row that were not acknowledged.
    retransmissions: u8,
    /// The same for probes of a window that was closed.
    probes: u8,
    /// Since the last acknowledgement.
    silence: Duration,
}

impl TcpStats {
    fn is_gone(self, limit: Duration) -> bool {
        self.silence >= limit && self.retransmissions.max(self.probes) >= QUESTIONS
    }
}

/// Whether the machine at the other end of a connection has vanished: it was asked several times and
/// has been silent for at least `limit`. Never true of sockets that are not TCP: their peers do not
/// vanish without the kernel's knowing.
///
/// The kernel asks a machine that has not taken anything for hours every two minutes only, so
/// this may become true some six minutes after such a machine has vanished.
pub fn is_gone(socket: BorrowedFd<'_>, limit: Duration) -> bool {
    tcp_stats(socket).is_some_and(|stats| stats.is_gone(limit))
}

/// What TCP knows of the other end of a connection; nothing if it is not TCP.
fn tcp_stats(socket: BorrowedFd<'_>) -> Option<TcpStats> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which are there.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // SAFETY: zeroes are a value of this struct, which is made of numbers, and so is all that the
    // kernel has written over them.
    let info = unsafe { info.assume_init() };
    (result == 0).then(|| TcpStats {
        retransmissions: info.tcpi_retransmits,
        probes: info.tcpi_probes,
        silence: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn silence_counts_only_where_something_was_asked() {
        let gone = TcpStats { retransmissions: 8, probes: 0, silence: Duration::from_secs(61) };
        assert!(gone.is_gone(SILENCE));
        assert!(TcpStats { retransmissions: 0, probes: 3, ..gone }.is_gone(SILENCE));
        // Idle.
        assert!(!TcpStats { retransmissions: 0, ..gone }.is_gone(SILENCE));
        // Stopped: the last probe was acknowledged, the next one is under way.
        assert!(!TcpStats { retransmissions: 0, probes: 1, ..gone }.is_gone(SILENCE));
        // Some packets were lost.
        assert!(!TcpStats { silence: Duration::from_secs(3), ..gone }.is_gone(SILENCE));
    }

    #[test]
    fn those_who_are_there_are_not_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stats = tcp_stats(stream.as_fd()).unwrap();
        assert!(
            stats.retransmissions == 0 && stats.probes == 0 && !stats.is_gone(SILENCE),
            "{stats:?}"
        );
        let (unix, _peer) = UnixStream::pair().unwrap();
        assert!(tcp_stats(unix.as_fd()).is_none() && !is_gone(unix.as_fd(), SILENCE));
    }
}
