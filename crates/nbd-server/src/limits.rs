//! How much of the server a client may use.

use std::time::Duration;

use nbd_net::liveness;

/// The rate at which a client has to send or read while others wait for the memory that it holds,
/// after the first [`Limits::stall`]. Without it, a client that sends a byte now and then would
/// keep the memory for ever, because each byte restarts a timeout of the socket.
pub(crate) const MIN_BYTES_PER_SECOND: u64 = 256 << 10;

/// How far a client is behind the minimum rate: the time that the server has waited for it, less
/// the time that its bytes take at that rate.
///
/// It is never ahead: otherwise a client that sends nearly all of a long request at once could
/// take minutes for the rest, with much memory in its hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lag(Duration);

impl Lag {
    /// Notes a wait for the client.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.0 = self.0.saturating_add(time);
    }

    /// Notes bytes that the client has sent or read.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.0 = self.0.saturating_sub(time_at_minimum_rate(bytes));
    }

    /// Whether the client is too slow for others to wait for its memory.
    pub(crate) fn exceeds(self, stall: Duration) -> bool {
        self.0 > stall
    }
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
    /// or how far it may be behind 256 KiB a second, while others wait for that memory.
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

/// In nanoseconds: small pieces would lose much of their time to a coarser unit.
fn time_at_minimum_rate(bytes: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(MIN_BYTES_PER_SECOND);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_at_the_minimum_rate_do_not_fall_behind() {
        for piece in [263, 512] {
            let (mut lag, mut waited) = (Lag::default(), Duration::ZERO);
            for pieces in 1..=1_000_000 {
                let nanos = pieces * piece * 1_000_000_000 / MIN_BYTES_PER_SECOND;
                lag.waited(Duration::from_nanos(nanos) - waited);
                waited = Duration::from_nanos(nanos);
                lag.moved(piece);
            }
            assert!(!lag.exceeds(Duration::from_secs(1)), "pieces of {piece}: {lag:?}");
        }
    }

    #[test]
    fn a_client_gets_the_time_that_its_bytes_take_at_the_minimum_rate() {
        let (stall, second) = (Duration::from_secs(30), Duration::from_secs(1));
        let is_too_slow = |waited: Duration, moved| {
            let mut lag = Lag::default();
            lag.waited(waited);
            lag.moved(moved);
            lag.exceeds(stall)
        };
        assert!(!is_too_slow(stall, 0));
        assert!(is_too_slow(stall + second, 0));
        // A byte extends the time by nothing, a second's worth of bytes by a second.
        assert!(is_too_slow(stall + second, 1));
        assert!(!is_too_slow(stall + second, MIN_BYTES_PER_SECOND));
        assert!(is_too_slow(stall + 2 * second, MIN_BYTES_PER_SECOND));
        assert!(!is_too_slow(stall + second, u64::MAX));
    }

    #[test]
    fn bytes_that_came_fast_give_no_time_for_the_rest() {
        let (stall, mut lag) = (Duration::from_secs(30), Lag::default());
        lag.moved(63 << 20);
        for _ in 0..3 {
            assert!(!lag.exceeds(stall));
            lag.waited(Duration::from_secs(15));
            lag.moved(1);
        }
        assert!(lag.exceeds(stall));
    }
}
