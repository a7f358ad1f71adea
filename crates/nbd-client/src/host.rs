//! Whether the machine at the other end still answers.
//!
//! A server that is stopped, in a debugger for example, is waited for: its machine acknowledges
//! what it is sent. A machine that has vanished acknowledges nothing. While the connection is
//! idle, TCP's keepalive notices; but as long as something is unacknowledged there is no keepalive,
//! and TCP goes on for a quarter of an hour. TCP_USER_TIMEOUT is no way out: it also ends a
//! connection whose peer acknowledges everything and has no more room.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::system;

/// How often to look.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// A machine that is silent for so long ...
const SILENCE: Duration = Duration::from_secs(60);
/// ... while it was asked so often has vanished.
const QUESTIONS: u8 = 3;

/// What TCP knows of the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signs {
    /// Retransmissions in a row that were not acknowledged.
    pub(crate) retransmissions: u8,
    /// The same for probes of a window that was closed.
    pub(crate) probes: u8,
    /// Since the last acknowledgement.
    pub(crate) silence: Duration,
}

impl Signs {
    fn is_gone(self) -> bool {
        self.silence >= SILENCE && self.retransmissions.max(self.probes) >= QUESTIONS
    }
}

/// Whether the machine at the other end of a connection has vanished. Never true of sockets that
/// are not TCP: their peers do not vanish without the kernel's knowing.
pub(crate) fn is_gone(socket: BorrowedFd<'_>) -> bool {
    system::tcp_signs(socket).is_some_and(Signs::is_gone)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn silence_is_a_sign_only_where_something_was_asked() {
        let gone = Signs { retransmissions: 8, probes: 0, silence: Duration::from_secs(61) };
        assert!(gone.is_gone());
        assert!(Signs { retransmissions: 0, probes: 3, ..gone }.is_gone());
        // Idle.
        assert!(!Signs { retransmissions: 0, ..gone }.is_gone());
        // Stopped: the last probe was acknowledged, the next one is under way.
        assert!(!Signs { retransmissions: 0, probes: 1, ..gone }.is_gone());
        // Some packets were lost.
        assert!(!Signs { silence: Duration::from_secs(3), ..gone }.is_gone());
    }

    #[test]
    fn those_who_are_there_are_not_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let signs = system::tcp_signs(stream.as_fd()).unwrap();
        assert!(signs.retransmissions == 0 && signs.probes == 0 && !signs.is_gone(), "{signs:?}");
        let (unix, _peer) = UnixStream::pair().unwrap();
        assert!(system::tcp_signs(unix.as_fd()).is_none() && !is_gone(unix.as_fd()));
    }
}
