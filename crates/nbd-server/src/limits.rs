//! How much of the server a client may use.

use std::time::Duration;

use nbd_net::liveness;

/// The rate at which a client has to send or read while others wait for the memory that it holds,
/// after the first [`Limits::stall`]. Without it, a client that sends a byte now and then would
/// keep the memory for ever, because each byte restarts a timeout of the socket.
pub(crate) const MIN_BYTES_PER_SECOND: u64 = 256 << 10;

/// Whether a client is too slow for others to wait for its memory: the server waited `waited` for
/// it, and it moved `moved` bytes in that time.
pub(crate) fn is_too_slow(waited: Duration, moved: u64, stall: Duration) -> bool {
    let allowed = Duration::from_millis(moved.saturating_mul(1000) / MIN_BYTES_PER_SECOND);
    waited > stall.saturating_add(allowed)
}

/// Limits of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time, to all exports together.
    pub connections: usize,
    /// Time for the whole handshake.
    pub handshake: Duration,
    /// How long a client without requests in flight may send nothing, and how long any client may
    /// leave replies unread. `None` is without limit, which the kernel's client needs: it sends
    /// nothing while its device is idle.
    pub idle: Option<Duration>,
    /// Most requests of one connection in flight; later ones wait in the socket.
    pub in_flight: usize,
    /// Most bytes of data of one connection's requests in flight. A single request is served
    /// whatever its length.
    pub in_flight_bytes: u64,
    /// Bytes of memory for the data of all connections together. Requests beyond that queue. A
    /// request that is longer than this waits until no other one uses the memory. Beside it each
    /// connection has buffers of its own, a few MiB at most, so that small requests do not queue.
    pub memory: u64,
    /// How long a client that holds common memory may leave replies unread or a request half sent,
    /// or send or read less than 256 KiB a second, while others wait for that memory.
    pub stall: Duration,
    /// How long a client's machine may acknowledge neither data nor keepalive probes. The machine
    /// of a client that is merely stopped acknowledges both. For TCP only: the kernel notices the
    /// end of every other kind of client.
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
    fn a_client_gets_the_time_that_its_bytes_take_at_the_minimum_rate() {
        let (stall, second) = (Duration::from_secs(30), Duration::from_secs(1));
        assert!(!is_too_slow(stall, 0, stall));
        assert!(is_too_slow(stall + second, 0, stall));
        // A byte extends the time by nothing, a second's worth of bytes by a second.
        assert!(is_too_slow(stall + second, 1, stall));
        assert!(!is_too_slow(stall + second, MIN_BYTES_PER_SECOND, stall));
        assert!(is_too_slow(stall + 2 * second, MIN_BYTES_PER_SECOND, stall));
        assert!(!is_too_slow(stall + second, u64::MAX, Duration::MAX));
    }
}
