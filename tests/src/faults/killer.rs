//! SIGKILL for the backend of a device, at random moments, while a test does something with it.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nbd_control::process::ProcessId;
use nbd_control::registry::Registry;
use nix::sys::signal::Signal;

use crate::device::{Device, completed};
use crate::process::{children, signal};
use crate::random::Random;
use crate::wait::{EVENT_TIMEOUT, scaled_timeout};

/// Every so many times the spares die as well, so that starting a program is tried too.
const KILLS_PER_SPARE_KILL: u64 = 4;
/// So many in a row may be killed before one of them has answered anything. With more of that the
/// holder would give up, as it should: it takes them for backends that crash by themselves.
const MAX_UNPROVEN_KILLS: u32 = 3;

/// A thread that kills.
#[derive(Debug)]
pub struct Killer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: Option<JoinHandle<HashSet<i32>>>,
}

impl Killer {
    /// Kills whoever serves the device, after a pause of so many milliseconds each time.
    #[must_use]
    pub fn start(device: &Device, pauses: RangeInclusive<u64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let (stops, counts) = (Arc::clone(&stop), Arc::clone(&count));
        let index = device.index();
        let thread = std::thread::spawn(move || kill_until(&stops, &counts, index, &pauses));
        Self { stop, count, thread: Some(thread) }
    }

    /// Backends killed so far; panics if there is nobody to kill any more.
    #[track_caller]
    #[must_use]
    pub fn count(&self) -> usize {
        let lives = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        assert!(lives, "the device has no backend that answers");
        self.count.load(Ordering::Relaxed)
    }

    /// Ends it; the result is the pids of the killed, each of them once.
    #[must_use]
    pub fn stop(mut self) -> HashSet<i32> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("a thread that was not stopped");
        thread.join().expect("a killer that lived")
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Checks that all of the killed were followed by another, and that nobody died of anything else.
/// There may be a restart more than kills: a spare may have begun to serve when it was killed.
pub fn check_restarts(device: &Device, killed: usize) {
    let restarts = device.status().backend.restarts;
    assert!(restarts >= killed as u64, "{restarts} restarts after {killed} kills");
    let log = Registry::new(None).log(device.index());
    let log = std::fs::read_to_string(log).expect("the device's log");
    let ended = |line: &&str| line.contains(": backend ") && !line.contains("killed by SIGKILL");
    let others: Vec<_> = log.lines().filter(ended).collect();
    assert!(others.is_empty(), "{others:?}");
}

fn kill_until(
    stop: &AtomicBool,
    count: &AtomicUsize,
    index: u32,
    pauses: &RangeInclusive<u64>,
) -> HashSet<i32> {
    let registry = Registry::new(None);
    let mut random = Random::from_environment();
    let mut killed = HashSet::new();
    let (mut answered, mut unproven) = (0, 0);
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        assert!(last.elapsed() < scaled_timeout(EVENT_TIMEOUT), "no backend to kill");
        sleep(Duration::from_millis(random.within(pauses)));
        let now = completed(&format!("nbd{index}"));
        if now == answered && unproven == MAX_UNPROVEN_KILLS {
            continue;
        }
        unproven = if now == answered { unproven + 1 } else { 0 };
        answered = now;
        let state = registry.read_state(index).ok().flatten();
        let victim = state.and_then(|state| state.backend);
        // The dead are not killed again: the next one may not have come yet.
        let Some(victim) = victim.filter(ProcessId::is_alive) else {
            continue;
        };
        if random.number().is_multiple_of(KILLS_PER_SPARE_KILL) {
            kill_spares(&registry, index, victim.pid);
        }
        if signal(victim.pid, Signal::SIGKILL) && killed.insert(victim.pid) {
            count.store(killed.len(), Ordering::Relaxed);
            last = Instant::now();
        }
    }
    killed
}

/// Kills the backends that wait for their turn, and what else the holder has just started.
fn kill_spares(registry: &Registry, index: u32, serving: i32) {
    let Some(state) = registry.read_state(index).ok().flatten() else {
        return;
    };
    let not_these = [serving, state.sitter.pid];
    for spare in children(state.holder.pid) {
        if !not_these.contains(&spare) {
            signal(spare, Signal::SIGKILL);
        }
    }
}
