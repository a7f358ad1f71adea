//! A backend with worker threads, killed at random moments.
//!
//! Its threads cannot be stepped one by one in every order, so here only chance decides where each
//! of them is when all are killed: in the middle of executing, waiting for the lane's lock, staging
//! or sending, in the recovery, or before it.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::device_fixture::DeviceFixture;
use crate::process::Process;
use crate::script::{Manner, Random, Scenario, Step, flushes, mixture};

/// Bounds for the longest life of a backend, in microseconds.
const LIVES: RangeInclusive<u64> = 500..=10_000_000;

/// How many of so many flushes, one by one, are executed by workers.
pub(crate) fn flushes_of_workers(count: usize) -> u64 {
    let fixture = DeviceFixture::new(&flushes(count));
    let storage = fixture.storage.try_clone().expect("a duplicate");
    let length = || storage.metadata().expect("its size").len();
    let before = length();
    Process::start(&fixture).serve_to_the_end(fixture);
    length() - before
}

/// Kills so many backends, one after the other, on one device. Returns the number of requests
/// that were answered, and how many of the dead had left some to their successors.
pub(crate) fn kill_at_random(kills: usize, narrow: bool, random: &mut Random) -> (u64, u64) {
    let steps = Vec::new();
    let mut fixture =
        DeviceFixture::new(&Scenario { name: "at random", manner: Manner::Workers, narrow, steps });
    let (mut left, mut longest) = (0, 3000);
    for _ in 0..kills {
        if fixture.peer.oracle.is_idle() {
            fixture.peer.oracle.append(mixture(random));
        }
        let life = Duration::from_micros(random.below(longest));
        let before = fixture.peer.oracle.answers();
        let mut process = Process::start(&fixture);
        let start = Instant::now();
        while start.elapsed() < life {
            assert!(!process.turn(&mut fixture, 0), "a backend left before the kernel did");
        }
        process.kill();
        // Many shall die while they are at work, on any machine.
        let idle = fixture.peer.oracle.answers() == before;
        longest = if idle { longest * 10 / 9 } else { longest * 9 / 10 };
        longest = longest.clamp(*LIVES.start(), *LIVES.end());
        left += u64::from(!fixture.in_flight().is_empty());
    }
    fixture.peer.oracle.append(vec![Step::Settle, Step::Leave]);
    let answers = fixture.peer.oracle.answers();
    Process::start(&fixture).serve_to_the_end(fixture);
    (answers, left)
}
