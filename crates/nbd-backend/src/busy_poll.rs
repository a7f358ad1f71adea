//! Busy polling for the next request of a client that asks again at once.
//!
//! Sleeping and waking a thread takes longer than a small request. So this polls the socket for a
//! short time before it sleeps, while three conditions hold: there are processors to spare, the
//! latest requests came quickly, and this process receives from few other clients. The last one
//! because other clients keep the processors awake anyway.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::now;

/// Longest poll, in nanoseconds. A client that takes longer ends the streak.
const MAX_POLL_NANOS: u64 = 50_000;
/// A receive that took less than this, in nanoseconds, did not wait: the bytes were there.
const MIN_WAIT_NANOS: u64 = 3_000;
/// Polling starts after this many quick requests in a row.
const MIN_STREAK: u32 = 16;

/// How many threads of this process poll now.
static POLLING_THREADS: AtomicUsize = AtomicUsize::new(0);
/// How often threads of this process have received. A statistic, so relaxed ordering is enough.
static RECEIVE_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Decides for one client whether to poll.
#[derive(Debug, Default)]
pub struct BusyPoll {
    streak: u32,
    /// Whether the last receive waited for the client.
    has_waited: bool,
    /// [`RECEIVE_COUNT`] at the last receive of this client.
    last_receive_count: usize,
    /// How often other threads received between the last two receives of this client.
    other_receives: usize,
}

impl BusyPoll {
    /// Polls until the socket is readable, if a request will probably come soon, and then receives.
    pub fn receive<T>(&mut self, socket: BorrowedFd<'_>, receive: impl FnOnce() -> T) -> T {
        if max_polling_threads() == 0 {
            return receive();
        }
        let begun = now();
        if self.should_poll() {
            poll_until_readable(socket, begun);
        }
        let received = receive();
        self.note(now().saturating_sub(begun));
        self.note_other_receives(RECEIVE_COUNT.fetch_add(1, Ordering::Relaxed) + 1);
        received
    }

    fn should_poll(&self) -> bool {
        self.streak >= MIN_STREAK && self.has_waited && self.other_receives < max_polling_threads()
    }

    fn note(&mut self, time: u64) {
        self.has_waited = time > MIN_WAIT_NANOS;
        if time > MAX_POLL_NANOS {
            self.streak = 0;
        } else if self.has_waited {
            self.streak = self.streak.saturating_add(1);
        }
    }

    /// Notes the total of receives, this one included.
    fn note_other_receives(&mut self, receive_count: usize) {
        self.other_receives = receive_count.wrapping_sub(self.last_receive_count).wrapping_sub(1);
        self.last_receive_count = receive_count;
    }
}

/// Polls until the socket is readable or [`MAX_POLL_NANOS`] have passed. Never inlined: the number
/// of rounds depends on the machine, and `scripts/instructions` leaves this function out by name.
#[inline(never)]
fn poll_until_readable(socket: BorrowedFd<'_>, begun: u64) {
    if POLLING_THREADS.fetch_add(1, Ordering::Relaxed) < max_polling_threads() {
        let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::ZERO) == Ok(0)
            && now().saturating_sub(begun) < MAX_POLL_NANOS
        {
            std::hint::spin_loop();
        }
    }
    POLLING_THREADS.fetch_sub(1, Ordering::Relaxed);
}

/// Half of the processors, because the clients need some. On a single processor no thread polls:
/// its client would wait for it.
fn max_polling_threads() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from) / 2)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_streak_of_quick_requests_starts_polling() {
        let mut busy_poll = BusyPoll::default();
        let soon = (MIN_WAIT_NANOS + MAX_POLL_NANOS) / 2;
        for _ in 0..MIN_STREAK {
            assert!(!busy_poll.should_poll());
            busy_poll.note(soon);
        }
        assert!(busy_poll.should_poll());
        // This receive did not wait, so the next one will not either.
        busy_poll.note(MIN_WAIT_NANOS);
        assert!(!busy_poll.should_poll());
        busy_poll.note(soon);
        assert!(busy_poll.should_poll());
        busy_poll.note(MAX_POLL_NANOS + 1);
        busy_poll.note(soon);
        assert!(!busy_poll.should_poll());
    }

    #[test]
    fn receives_of_other_clients_stop_polling() {
        let mut busy_poll =
            BusyPoll { streak: MIN_STREAK, has_waited: true, ..BusyPoll::default() };
        let spare = max_polling_threads();
        busy_poll.note_other_receives(7);
        busy_poll.note_other_receives(7 + spare);
        assert_eq!(busy_poll.should_poll(), spare > 0);
        busy_poll.note_other_receives(7 + spare + spare + 1);
        assert!(!busy_poll.should_poll());
    }

    #[test]
    fn a_client_that_does_not_come_ends_the_streak() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut busy_poll =
            BusyPoll { streak: MIN_STREAK, has_waited: true, ..BusyPoll::default() };
        busy_poll
            .receive(ours.as_fd(), || std::thread::sleep(Duration::from_nanos(MAX_POLL_NANOS)));
        // On a single processor nothing is polled or noted.
        assert!(!busy_poll.should_poll() || max_polling_threads() == 0);
    }
}
