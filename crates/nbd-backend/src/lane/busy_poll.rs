//! Busy polling for the next request of a client that asks again at once.
//!
//! Sleeping and waking a thread, and a processor that has halted meanwhile, takes longer than a small
//! request. So this polls the socket for a while before it sleeps, if that pays: it tries both ways
//! and compares how long the next request takes to come. It does not poll on a single processor, for
//! a client that takes longer than a poll, or while this process receives from other clients, because
//! these keep the processors awake anyway.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::now;

/// Longest poll, in nanoseconds: as long as the kernel itself waits before it halts a processor
/// (`guest_halt_poll_ns` of cpuidle-haltpoll). A client that takes longer is not polled for.
const MAX_POLL_NANOS: u64 = 200_000;
/// A receive that took less than this, in nanoseconds, did not wait: the bytes were there.
const MIN_WAIT_NANOS: u64 = 3_000;
/// So many waits in a row tell how long they take asleep.
const SLEEP_TRIAL: u32 = 16;
/// So many waits tell how long they take awake.
const POLL_TRIAL: u32 = 64;
/// So many trials awake before the next one asleep: the client or the machine may have changed.
const MAX_POLL_TRIALS: u32 = 64;
/// So many waits asleep after polling gained nothing.
const REST: u32 = 4_096;
/// Polling pays if it takes this much off a wait, in percent.
const MIN_GAIN_PERCENT: u64 = 4;

/// How many threads of this process poll now.
static POLLING_THREADS: AtomicUsize = AtomicUsize::new(0);
/// How often threads of this process have received. A statistic, so relaxed ordering is enough.
static RECEIVE_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Decides for one client whether to poll.
#[derive(Debug, Default)]
pub struct BusyPoll {
    trial: Trial,
    /// Whether the last receive waited for the client.
    has_waited: bool,
    /// [`RECEIVE_COUNT`] at the last receive of this client.
    last_receive_count: usize,
    /// How often other threads received between the last two receives of this client.
    other_receives: usize,
}

/// Compares how long requests take to come while this thread sleeps and while it polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// Sleeps.
    Asleep(Waits),
    /// Polls; `asleep` is what a wait took before, in nanoseconds.
    Awake { waits: Waits, asleep: u64, trials: u32 },
    /// Polling gained nothing: so many waits are left asleep.
    Resting { left: u32 },
}

/// Waits of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waits {
    count: u32,
    nanos: u64,
}

impl Waits {
    /// The average in nanoseconds, once there are so many.
    fn add(&mut self, nanos: u64, enough: u32) -> Option<u64> {
        self.count += 1;
        self.nanos += nanos;
        (self.count >= enough).then(|| self.nanos / u64::from(self.count))
    }
}

impl Default for Trial {
    fn default() -> Self {
        Self::Asleep(Waits::default())
    }
}

impl Trial {
    /// Notes a wait of so many nanoseconds.
    fn note(self, nanos: u64) -> Self {
        match self {
            Self::Resting { left: 0 } => Self::default(),
            Self::Resting { left } => Self::Resting { left: left - 1 },
            _ if nanos > MAX_POLL_NANOS => Self::default(),
            Self::Asleep(mut waits) => match waits.add(nanos, SLEEP_TRIAL) {
                None => Self::Asleep(waits),
                Some(asleep) => Self::Awake { waits: Waits::default(), asleep, trials: 0 },
            },
            // A single long wait, of a client that was busy otherwise, is not to decide.
            Self::Awake { mut waits, asleep, trials } => {
                match waits.add(nanos.min(2 * asleep), POLL_TRIAL) {
                    None => Self::Awake { waits, asleep, trials },
                    Some(awake) if awake * 100 > asleep * (100 - MIN_GAIN_PERCENT) => {
                        Self::Resting { left: REST }
                    }
                    Some(_) if trials == MAX_POLL_TRIALS => Self::default(),
                    Some(_) => Self::Awake { waits: Waits::default(), asleep, trials: trials + 1 },
                }
            }
        }
    }
}

impl BusyPoll {
    /// Polls until the socket is readable, if a request will probably come soon, and then receives.
    pub fn receive<T>(&mut self, socket: BorrowedFd<'_>, receive: impl FnOnce() -> T) -> T {
        if max_polling_threads() == 0 {
            return receive();
        }
        let begun = now();
        let polls = self.should_poll();
        if polls {
            poll_until_readable(socket, begun);
        }
        let received = receive();
        self.note(now().saturating_sub(begun), polls);
        self.note_other_receives(RECEIVE_COUNT.fetch_add(1, Ordering::Relaxed) + 1);
        received
    }

    fn should_poll(&self) -> bool {
        let awake = matches!(self.trial, Trial::Awake { .. });
        awake && self.has_waited && self.other_receives < max_polling_threads()
    }

    /// Notes how long a receive took, and whether it began with a poll.
    fn note(&mut self, nanos: u64, polled: bool) {
        self.has_waited = nanos > MIN_WAIT_NANOS;
        // Asleep while a trial awake is under way, because of other clients or because the receive
        // before did not wait: that tells nothing of either.
        let counts = polled == matches!(self.trial, Trial::Awake { .. });
        if self.has_waited && (counts || nanos > MAX_POLL_NANOS) {
            self.trial = self.trial.note(nanos);
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

    const SLOW: u64 = 100_000;
    const QUICK: u64 = 20_000;

    /// Notes as many waits as end a trial.
    fn after(mut trial: Trial, waits: u32, nanos: u64) -> Trial {
        for _ in 0..waits {
            trial = trial.note(nanos);
        }
        trial
    }

    fn awake() -> Trial {
        let trial = after(Trial::default(), SLEEP_TRIAL, SLOW);
        assert!(matches!(trial, Trial::Awake { asleep: SLOW, .. }), "{trial:?}");
        trial
    }

    #[test]
    fn polling_goes_on_while_it_gains_something() {
        let trial = after(awake(), POLL_TRIAL, QUICK);
        assert!(matches!(trial, Trial::Awake { trials: 1, .. }), "{trial:?}");
        // From time to time it looks again what sleeping would take.
        let trial = after(trial, POLL_TRIAL * MAX_POLL_TRIALS, QUICK);
        assert_eq!(trial, Trial::default());
    }

    #[test]
    fn polling_ends_where_it_gains_nothing() {
        let trial = after(awake(), POLL_TRIAL, SLOW);
        assert_eq!(trial, Trial::Resting { left: REST });
        assert_eq!(after(trial, REST + 1, QUICK), Trial::default());
    }

    #[test]
    fn a_client_that_takes_longer_than_a_poll_is_not_polled_for() {
        assert_eq!(awake().note(MAX_POLL_NANOS + 1), Trial::default());
        let trial = after(Trial::default(), SLEEP_TRIAL - 1, SLOW);
        assert_eq!(trial.note(MAX_POLL_NANOS + 1), Trial::default());
    }

    #[test]
    fn a_receive_that_did_not_wait_tells_that_the_next_will_not_either() {
        let mut busy_poll = BusyPoll { trial: awake(), has_waited: true, ..BusyPoll::default() };
        let spare = max_polling_threads() > 0;
        assert_eq!(busy_poll.should_poll(), spare);
        busy_poll.note(MIN_WAIT_NANOS, true);
        assert!(!busy_poll.should_poll());
        // This one had to, asleep: it is no trial.
        busy_poll.note(SLOW, false);
        assert_eq!(busy_poll.trial, awake());
        assert_eq!(busy_poll.should_poll(), spare);
    }

    #[test]
    fn receives_of_other_clients_stop_polling() {
        let mut busy_poll = BusyPoll { trial: awake(), has_waited: true, ..BusyPoll::default() };
        let spare = max_polling_threads();
        busy_poll.note_other_receives(7);
        busy_poll.note_other_receives(7 + spare);
        assert_eq!(busy_poll.should_poll(), spare > 0);
        busy_poll.note_other_receives(7 + spare + spare + 1);
        assert!(!busy_poll.should_poll());
    }

    #[test]
    fn a_client_that_does_not_come_ends_polling() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut busy_poll = BusyPoll { trial: awake(), has_waited: true, ..BusyPoll::default() };
        busy_poll
            .receive(ours.as_fd(), || std::thread::sleep(Duration::from_nanos(MAX_POLL_NANOS)));
        // On a single processor nothing is polled or noted.
        assert!(!busy_poll.should_poll() || max_polling_threads() == 0);
    }
}
