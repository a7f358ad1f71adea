use super::*;

/// A machine whose clock takes a while to read.
struct Machine {
    nanos: u64,
    ticks: u64,
    /// Ticks in a microsecond.
    rate: u64,
    /// Microseconds that reading the clock takes.
    cost: u64,
    readings: u32,
}

impl Machine {
    fn new(rate: u64, cost: u64) -> Self {
        Self { nanos: 5_000_000_000, ticks: u64::MAX - 1_000_000, rate, cost, readings: 0 }
    }

    fn pass(&mut self, micros: u64) {
        self.nanos += micros * 1000;
        self.ticks = self.ticks.wrapping_add(micros * self.rate);
    }

    fn ask(&mut self, clock: &mut Clock) -> u64 {
        let ticks = self.ticks;
        clock.at(ticks, || {
            self.readings += 1;
            let before = self.ticks;
            self.pass(self.cost);
            let nanos = self.nanos;
            self.pass(self.cost);
            let uncertainty = self.ticks.wrapping_sub(before);
            Reading { nanos, ticks: before.wrapping_add(uncertainty / 2), uncertainty }
        })
    }

    /// Until the rate is known.
    fn settle(&mut self, clock: &mut Clock) {
        for _ in 0..2000 {
            self.pass(100);
            self.ask(clock);
        }
        self.readings = 0;
    }
}

fn counted() -> Clock {
    Clock { mode: Mode::Counted, ..Clock::new() }
}

#[test]
fn a_slow_clock_is_read_at_most_a_hundred_times_a_second() {
    let (mut machine, mut clock) = (Machine::new(2500, 15), counted());
    machine.settle(&mut clock);
    for _ in 0..100_000 {
        machine.pass(10);
        let (asked, before) = (machine.nanos, machine.readings);
        let returned = machine.ask(&mut clock);
        if machine.readings == before {
            assert!(returned.abs_diff(asked) < 2000, "{returned} at {asked}");
        }
    }
    assert!(machine.readings <= 101, "{} readings in a second", machine.readings);
    assert_eq!(clock.mode, Mode::Counted);
}

#[test]
fn a_fast_clock_is_read_each_time() {
    let (mut machine, mut clock) = (Machine::new(2500, 0), counted());
    machine.settle(&mut clock);
    assert_eq!(clock.mode, Mode::Plain);
}

#[test]
fn errors_of_the_counter_stay_small_and_time_never_runs_backwards() {
    let disturb: [fn(&mut Machine); 5] = [
        |machine| machine.ticks = 0,
        |machine| machine.ticks = machine.ticks.wrapping_add(1 << 40),
        |machine| machine.ticks = machine.ticks.wrapping_sub(1000),
        |machine| machine.nanos += 3_600_000_000_000,
        |machine| machine.rate *= 2,
    ];
    for (case, disturb) in disturb.into_iter().enumerate() {
        let (mut machine, mut clock) = (Machine::new(2500, 15), counted());
        machine.settle(&mut clock);
        let mut last = machine.ask(&mut clock);
        disturb(&mut machine);
        // Longer than a baseline, and than what is believed of the old rate.
        for step in 0..40_000 {
            machine.pass(10);
            let returned = machine.ask(&mut clock);
            assert!(returned >= last, "case {case}: backwards at step {step}");
            last = returned;
            // A clock that jumps by an hour is noticed when it is read.
            if case != 3 || step > 2000 {
                assert!(
                    returned.abs_diff(machine.nanos) <= 2 * MAX_COUNTER_AGE_NANOS,
                    "case {case}: {returned} at {} in step {step}",
                    machine.nanos
                );
            }
        }
        assert!(is_exact(&mut machine, &mut clock), "case {case}: never exact again");
    }
}

fn is_exact(machine: &mut Machine, clock: &mut Clock) -> bool {
    machine.settle(clock);
    let asked = machine.nanos;
    machine.ask(clock).abs_diff(asked) < 50_000
}

#[test]
fn an_interrupted_reading_is_not_used() {
    let (mut machine, mut clock) = (Machine::new(2500, 15), counted());
    machine.settle(&mut clock);
    let latest = clock.latest.unwrap().nanos;
    machine.pass(20_000);
    machine.cost = 5000;
    machine.ask(&mut clock);
    assert_eq!(clock.latest.unwrap().nanos, latest);
    machine.cost = 15;
    machine.ask(&mut clock);
    assert!(clock.latest.unwrap().nanos > latest);
}

#[test]
fn one_exceptionally_exact_reading_does_not_reject_all_others() {
    let (mut machine, mut clock) = (Machine::new(2500, 15), counted());
    machine.settle(&mut clock);
    machine.pass(20_000);
    machine.cost = 2;
    machine.ask(&mut clock);
    (machine.cost, machine.readings) = (15, 0);
    for _ in 0..100_000 {
        machine.pass(10);
        machine.ask(&mut clock);
    }
    assert!(machine.readings <= 105, "{} readings in a second", machine.readings);
}

#[test]
fn the_real_counter_agrees_with_the_real_clock() {
    if !counter_is_steady() {
        return;
    }
    let mut clock = counted();
    let (mut readings, end) = (0u64, monotonic() + 300_000_000);
    let mut asked = 0u64;
    loop {
        let before = monotonic();
        let returned = clock.at(ticks(), || {
            readings += 1;
            read()
        });
        let after = monotonic();
        asked += 1;
        let slack = 1_000_000;
        assert!(
            before <= returned + slack && returned <= after + slack,
            "{before} {returned} {after}"
        );
        if after > end {
            break;
        }
    }
    assert!(readings < asked, "the counter was never used");
}

#[test]
fn threads_agree_on_the_time() {
    let before = now();
    let between = std::thread::spawn(now).join().unwrap();
    assert!(before <= between && between <= now());
}
