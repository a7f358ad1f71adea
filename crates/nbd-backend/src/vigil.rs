//! Staying awake for a client that is about to ask again.
//!
//! To fall asleep and to be woken takes longer than a small request does itself, so a client with few
//! requests in flight is served mostly by waiting. Where there are processors to spare, this looks
//! for the next request for as long as the latest ones were in coming, and only while they come
//! so quickly: a client that takes its time costs nothing, and neither does a process that has others to
//! serve, who keep the processors awake anyway.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::now;

/// How long a client may take, in nanoseconds.
const BRISK: u64 = 50_000;
/// What comes sooner than this, in nanoseconds, was there already.
const AT_ONCE: u64 = 3_000;
/// So many requests in a row must have come quickly.
const CONVINCED: u32 = 16;

/// How many threads of this process stay awake.
static AWAKE: AtomicUsize = AtomicUsize::new(0);
/// How often threads of this process have received.
static RECEIVED: AtomicUsize = AtomicUsize::new(0);

/// One client's recent past.
#[derive(Debug, Default)]
pub struct Vigil {
    brisk: u32,
    /// Whether the client was waited for at all the last time.
    has_waited: bool,
    /// How often all threads had received when this one last did.
    received: usize,
    /// How often others received between the last two times that this one did.
    others: usize,
}

impl Vigil {
    /// Waits for something to receive, if that will probably come soon, and then receives.
    pub fn keep<T>(&mut self, socket: BorrowedFd<'_>, receive: impl FnOnce() -> T) -> T {
        if most_awake() == 0 {
            return receive();
        }
        let begun = now();
        if self.is_worth_it() {
            watch(socket, begun);
        }
        let received = receive();
        self.note(now().saturating_sub(begun));
        self.look_around(RECEIVED.fetch_add(1, Ordering::Relaxed) + 1);
        received
    }

    fn is_worth_it(&self) -> bool {
        self.brisk >= CONVINCED && self.has_waited && self.others < most_awake()
    }

    fn note(&mut self, time: u64) {
        self.has_waited = time > AT_ONCE;
        if time > BRISK {
            self.brisk = 0;
        } else if self.has_waited {
            self.brisk = self.brisk.saturating_add(1);
        }
    }

    /// Notes how often all have received by now, this one included.
    fn look_around(&mut self, received: usize) {
        self.others = received.wrapping_sub(self.received).wrapping_sub(1);
        self.received = received;
    }
}

/// Looks until there is something, or it has taken too long. Never inlined: how often it looks
/// depends on the machine, and `scripts/instructions` must be able to leave it out.
#[inline(never)]
fn watch(socket: BorrowedFd<'_>, begun: u64) {
    if AWAKE.fetch_add(1, Ordering::Relaxed) < most_awake() {
        let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::ZERO) == Ok(0) && now().saturating_sub(begun) < BRISK {
            std::hint::spin_loop();
        }
    }
    AWAKE.fetch_sub(1, Ordering::Relaxed);
}

/// Half of the processors: the clients need some, and on the only one they would wait for us, so
/// nobody watches there.
fn most_awake() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from) / 2)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_clients_that_come_back_soon_are_waited_for() {
        let mut vigil = Vigil::default();
        let soon = (AT_ONCE + BRISK) / 2;
        for _ in 0..CONVINCED {
            assert!(!vigil.is_worth_it());
            vigil.note(soon);
        }
        assert!(vigil.is_worth_it());
        // Nobody was waited for, and the next one will not be either.
        vigil.note(AT_ONCE);
        assert!(!vigil.is_worth_it());
        vigil.note(soon);
        assert!(vigil.is_worth_it());
        vigil.note(BRISK + 1);
        vigil.note(soon);
        assert!(!vigil.is_worth_it());
    }

    #[test]
    fn who_serves_others_meanwhile_stays_awake_for_none() {
        let mut vigil = Vigil { brisk: CONVINCED, has_waited: true, ..Vigil::default() };
        let spare = most_awake();
        vigil.look_around(7);
        vigil.look_around(7 + spare);
        assert_eq!(vigil.is_worth_it(), spare > 0);
        vigil.look_around(7 + spare + spare + 1);
        assert!(!vigil.is_worth_it());
    }

    #[test]
    fn whoever_does_not_come_is_not_waited_for_again() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut vigil = Vigil { brisk: CONVINCED, has_waited: true, ..Vigil::default() };
        vigil.keep(ours.as_fd(), || std::thread::sleep(Duration::from_nanos(BRISK)));
        // On an only processor nobody is waited for, and nothing is learnt of it.
        assert!(!vigil.is_worth_it() || most_awake() == 0);
    }
}
