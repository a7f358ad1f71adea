//! How much of us a client may take.

use std::time::Duration;

use nbd_net::liveness;

/// The least that a client has to send or read in a second while others wait for the memory that it
/// takes up, in bytes, once it has been waited for as long as [`Limits::stall`]. One that trickles
/// would keep it otherwise, as each byte is a sign of life.
pub(crate) const MIN_RATE: u64 = 256 << 10;

/// Whether a client that was waited for so long, and has moved so much meanwhile, is too slow for
/// others to wait.
pub(crate) fn is_too_slow(waited: Duration, moved: u64, stall: Duration) -> bool {
    let allowed = Duration::from_millis(moved.saturating_mul(1000) / MIN_RATE);
    waited > stall.saturating_add(allowed)
}

/// Limits of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time, to all exports together.
    pub connections: usize,
    /// Time for the whole handshake.
    pub handshake: Duration,
    /// How long a client may be silent while nothing of its is under way, or leave replies
    /// unread. `None` is for ever, which is what the kernel's clients expect.
    pub idle: Option<Duration>,
    /// Requests of one connection that are under way; more than that wait in the socket.
    pub in_flight: usize,
    /// Bytes of data of the requests of one connection that are under way. A single request is
    /// served whatever its length.
    pub in_flight_bytes: u64,
    /// Bytes of memory for the data of all connections together. What is beyond that waits for its
    /// turn; so does a request that is longer, until it is alone. Beside it each connection has
    /// buffers of its own, a few MiB at most, so that small requests are served at once.
    pub memory: u64,
    /// How long a client may leave replies unread or a request half sent while others wait for the
    /// memory that is taken up by that, or may send or read less than 256 KiB a second.
    pub stall: Duration,
    /// How long the machine of a client may leave unanswered what it was sent, and what it was
    /// asked since. One whose client is merely stopped answers. Of clients on TCP only: the others
    /// do not vanish without the kernel's knowing.
    pub vanished: Duration,
    /// Longest read or write, in bytes.
    pub max_payload: u32,
    /// How long connections may take to finish when the server stops.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake: Duration::from_secs(10),
            idle: None,
            in_flight: 256,
            in_flight_bytes: 128 << 20,
            memory: 512 << 20,
            stall: Duration::from_secs(30),
            vanished: liveness::SILENCE,
            max_payload: 64 << 20,
            grace: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_moves_something_is_waited_for_as_long_as_that_takes_at_the_least_rate() {
        let (stall, second) = (Duration::from_secs(30), Duration::from_secs(1));
        assert!(!is_too_slow(stall, 0, stall));
        assert!(is_too_slow(stall + second, 0, stall));
        // A byte is no reason to go on waiting, and a second's worth is one for a second.
        assert!(is_too_slow(stall + second, 1, stall));
        assert!(!is_too_slow(stall + second, MIN_RATE, stall));
        assert!(is_too_slow(stall + 2 * second, MIN_RATE, stall));
        assert!(!is_too_slow(stall + second, u64::MAX, Duration::MAX));
    }
}
