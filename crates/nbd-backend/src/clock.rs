//! The ledger's clock, `CLOCK_MONOTONIC`, without a system call for each request.
//!
//! Reading the clock usually costs 20 ns, by the vDSO. Without it (in user-mode Linux, in some
//! sandboxes, with clock sources other than the TSC) it is a system call. There, and only there,
//! the processor's counter gives the time since the clock was last read. That is at most 10 ms, so
//! an error of the counter, because the machine was suspended or migrated, stays small.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ops::RangeInclusive;

use nix::time::{ClockId, clock_gettime};

/// The clock is read again after this time by the counter, in nanoseconds.
const MAX_COUNTER_AGE_NANOS: u64 = 10_000_000;
/// Distance of two readings from which the counter's rate is computed, in nanoseconds. Between
/// readings that are farther apart the machine may have been suspended.
const BASELINE_NANOS: RangeInclusive<u64> = 100_000_000..=10_000_000_000;
/// A clock that is read in less time than this, in nanoseconds, is read each time.
const FAST_CLOCK_NANOS: u64 = 250;

thread_local! {
    static CLOCK: RefCell<Clock> = const { RefCell::new(Clock::new()) };
}

/// `CLOCK_MONOTONIC` in nanoseconds: the ledger's clock, common to all processes. It never runs
/// backwards in one thread.
#[must_use]
pub fn now() -> u64 {
    CLOCK.with_borrow_mut(|clock| match clock.mode {
        Mode::Plain => monotonic(),
        Mode::Counted => clock.at(ticks(), read),
        Mode::Undecided => {
            clock.mode = if counter_is_steady() { Mode::Counted } else { Mode::Plain };
            monotonic()
        }
    })
}

/// The clock and the counter, read together.
#[derive(Clone, Copy, Debug)]
struct Reading {
    nanos: u64,
    ticks: u64,
    /// Ticks of the counter while the clock was read.
    uncertainty: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Undecided,
    /// The clock is read each time.
    Plain,
    /// The counter is added to the last reading.
    Counted,
}

/// The state of one thread. Not shared, so it needs no lock.
#[derive(Debug)]
struct Clock {
    mode: Mode,
    /// The latest reading, and for how many ticks it is used: 0 while the rate is unknown.
    latest: Option<Reading>,
    valid_ticks: u64,
    /// Nanoseconds in 2^32 ticks.
    rate: u64,
    /// The reading from which the rate is measured.
    base: Option<Reading>,
    /// The least uncertainty of any reading, and more where readings of late had more.
    uncertainty: u64,
    /// The latest time returned: time must not run backwards.
    last_returned: u64,
}

impl Clock {
    const fn new() -> Self {
        Self {
            mode: Mode::Undecided,
            latest: None,
            valid_ticks: 0,
            rate: 0,
            base: None,
            uncertainty: u64::MAX,
            last_returned: 0,
        }
    }

    fn at(&mut self, ticks: u64, read: impl FnOnce() -> Reading) -> u64 {
        let time = match self.latest {
            Some(latest) if ticks.wrapping_sub(latest.ticks) < self.valid_ticks => {
                latest.nanos + ((ticks.wrapping_sub(latest.ticks) * self.rate) >> 32)
            }
            _ => self.accept_reading(read()),
        };
        self.last_returned = self.last_returned.max(time);
        self.last_returned
    }

    fn accept_reading(&mut self, reading: Reading) -> u64 {
        self.uncertainty = self.uncertainty.min(reading.uncertainty);
        // A thread that was interrupted between clock and counter has values of different times.
        if reading.uncertainty <= self.uncertainty.saturating_mul(2) {
            self.latest = Some(reading);
            self.measure(reading);
        } else {
            // Accept more the next time: the most certain reading may have been an exception.
            self.uncertainty = self.uncertainty.max(1).saturating_mul(2);
        }
        reading.nanos
    }

    /// Measures the counter's rate against the clock's.
    fn measure(&mut self, reading: Reading) {
        let base = *self.base.get_or_insert(reading);
        let nanos = reading.nanos.saturating_sub(base.nanos);
        if nanos < *BASELINE_NANOS.start() {
            return;
        }
        self.base = Some(reading);
        self.valid_ticks = 0;
        let ticks = reading.ticks.wrapping_sub(base.ticks);
        // Slower than 10 MHz: the counter stood still, ran backwards, or does not exist.
        if nanos > *BASELINE_NANOS.end() || ticks < nanos / 100 || ticks > nanos * 100 {
            return;
        }
        self.rate = ((u128::from(nanos) << 32) / u128::from(ticks)) as u64;
        self.valid_ticks =
            ((u128::from(MAX_COUNTER_AGE_NANOS) << 32) / u128::from(self.rate)) as u64;
        if self.uncertainty < self.valid_ticks / (MAX_COUNTER_AGE_NANOS / FAST_CLOCK_NANOS) {
            self.mode = Mode::Plain;
        }
    }
}

fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn read() -> Reading {
    let before = ticks();
    let nanos = monotonic();
    let uncertainty = ticks().wrapping_sub(before);
    Reading { nanos, ticks: before.wrapping_add(uncertainty / 2), uncertainty }
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory. Where the
    // kernel forbids it the process would end; `PR_SET_TSC` is ours to ask for, and we do not.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Whether the counter runs at one rate whatever the processor does ("invariant TSC").
#[cfg(target_arch = "x86_64")]
fn counter_is_steady() -> bool {
    const HIGHEST: u32 = 0x8000_0000;
    const POWER: u32 = 0x8000_0007;
    #[allow(unused_unsafe, reason = "the oldest compiler supported does not know that it is safe")]
    let cpuid = |leaf| {
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { core::arch::x86_64::__cpuid(leaf) }
    };
    cpuid(HIGHEST).eax >= POWER && cpuid(POWER).edx & 1 << 8 != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

#[cfg(not(target_arch = "x86_64"))]
fn counter_is_steady() -> bool {
    false
}

#[cfg(test)]
mod tests;
