//! The ledger's clock, `CLOCK_MONOTONIC`, without a system call for each request.
//!
//! Usually it costs 20 ns to read, as the kernel maps what is needed for it into the process. Where
//! it does not (in user-mode Linux, in some sandboxes, with clock sources other than the TSC) it is a
//! system call. There, and only there, the processor's counter tells how far the clock has come
//! since it was last read, which is never long ago: so what the counter gets wrong, because the
//! machine was suspended or moved, cannot grow.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ops::RangeInclusive;

use nix::time::{ClockId, clock_gettime};

/// How long the counter is believed after the clock was read, in nanoseconds.
const TRUST: u64 = 10_000_000;
/// How far apart two readings are that tell the counter's rate, in nanoseconds. Between two that
/// are farther apart anything may have happened.
const BASELINE: RangeInclusive<u64> = 100_000_000..=10_000_000_000;
/// A clock that is read in less time than this, in nanoseconds, needs no help.
const CHEAP: u64 = 250;

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
    /// For how long the counter went on while the clock was read.
    doubt: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Undecided,
    /// The clock is read each time.
    Plain,
    /// It is read now and then.
    Counted,
}

/// One thread's.
#[derive(Debug)]
struct Clock {
    mode: Mode,
    /// The latest reading, and for how many ticks it is good: none while the rate is not known.
    latest: Option<Reading>,
    good_for: u64,
    /// Nanoseconds in 2^32 ticks.
    rate: u64,
    /// The reading from which the rate is measured.
    base: Option<Reading>,
    /// The least doubt of any reading, and more where readings of late had more.
    doubt: u64,
    /// What was told last.
    told: u64,
}

impl Clock {
    const fn new() -> Self {
        Self {
            mode: Mode::Undecided,
            latest: None,
            good_for: 0,
            rate: 0,
            base: None,
            doubt: u64::MAX,
            told: 0,
        }
    }

    fn at(&mut self, ticks: u64, read: impl FnOnce() -> Reading) -> u64 {
        let time = match self.latest {
            Some(latest) if ticks.wrapping_sub(latest.ticks) < self.good_for => {
                latest.nanos + ((ticks.wrapping_sub(latest.ticks) * self.rate) >> 32)
            }
            _ => self.learn(read()),
        };
        self.told = self.told.max(time);
        self.told
    }

    fn learn(&mut self, reading: Reading) -> u64 {
        self.doubt = self.doubt.min(reading.doubt);
        // Whoever was interrupted between clock and counter cannot say which belongs to which.
        if reading.doubt <= self.doubt.saturating_mul(2) {
            self.latest = Some(reading);
            self.measure(reading);
        } else {
            // Or the one that had the least doubt was lucky, and none will ever be again.
            self.doubt = self.doubt.max(1).saturating_mul(2);
        }
        reading.nanos
    }

    /// Measures the counter's rate against the clock's.
    fn measure(&mut self, reading: Reading) {
        let base = *self.base.get_or_insert(reading);
        let nanos = reading.nanos.saturating_sub(base.nanos);
        if nanos < *BASELINE.start() {
            return;
        }
        self.base = Some(reading);
        self.good_for = 0;
        let ticks = reading.ticks.wrapping_sub(base.ticks);
        // A counter slower than 10 MHz, or none: it stood still or ran backwards.
        if nanos > *BASELINE.end() || ticks < nanos / 100 || ticks > nanos * 100 {
            return;
        }
        self.rate = ((u128::from(nanos) << 32) / u128::from(ticks)) as u64;
        self.good_for = ((u128::from(TRUST) << 32) / u128::from(self.rate)) as u64;
        if self.doubt < self.good_for / (TRUST / CHEAP) {
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
    let doubt = ticks().wrapping_sub(before);
    Reading { nanos, ticks: before.wrapping_add(doubt / 2), doubt }
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
