//! Every instruction of a scenario as the last one of a backend.
//!
//! # Why this is every instruction
//!
//! What a process leaves behind when it is killed between two instructions is the memory that it
//! shares with others, its files and its sockets: here the ledger, the storage and the lane. So a
//! backend is stepped through a scenario *once*; after each instruction its fixture is compared
//! with what it was before, and whenever anything in it has changed, a successor is started in a
//! copy of it and must finish the scenario, with every answer and every byte checked. Instructions
//! that change nothing in the fixture leave the same to a successor as the one before them, so they
//! are covered by the same run. That makes the work linear in the instructions, where killing a
//! process after each of them would be quadratic.
//!
//! The copy could be wrong about what death leaves behind. So some backends (in the long mode one
//! for each change) are also led to their kill point and truly killed there, and the successor
//! works in the fixture itself.
//!
//! # Why inside of system calls there is nothing more to find
//!
//! A SIGKILL is acted upon when a system call returns to user space, not before. `recvmmsg` and
//! `sendmmsg` have stored `msg_len` by then (into a page that is locked, so that the store cannot
//! be given up), whether they moved all bytes, or some because the signal woke them from waiting
//! for room, or none; then the call fails, and the count is the 0 that was there. So a process
//! killed inside of them leaves what a process leaves that was stopped right after them and before
//! its next instruction, and those points are in the sweep. The part-way returns are provoked by
//! interrupting sleepers. The calls that touch the storage may be cut short between two pages;
//! requests that are not answered are executed again, which overwrites whatever they did, and one
//! block more or less is the same to that.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use crate::crash_state::{CrashState, scenes};
use crate::device_fixture::{DeviceFixture, Image};
use crate::process::Process;
use crate::script::{Random, Scenario};
use crate::single_step::{Event, SingleStep};

/// How much is done beside the sweep itself.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Backends that are truly killed.
    kills: usize,
    /// Successors that are stepped through as well.
    successors: usize,
}

impl Extent {
    /// A sample; with `NBD_STEP_ALL=1` all there is.
    fn from_environment() -> Self {
        match std::env::var("NBD_STEP_ALL") {
            Ok(all) if all == "1" => Self { kills: usize::MAX, successors: usize::MAX },
            _ => Self { kills: 32, successors: 2 },
        }
    }
}

/// A moment in a backend's life.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    /// System calls that have ended.
    calls: u64,
    /// Instructions since the last of them.
    steps: u64,
    /// All instructions.
    points: u64,
}

/// What a sweep has covered.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Instructions after which the backend could have been killed.
    pub(crate) points: u64,
    /// Different states of the device that they leave, each finished by a successor.
    pub(crate) states: u64,
    /// How often the backend slept in the middle of sending.
    pub(crate) sleeps: u64,
    /// Backends that were truly killed.
    kills: u64,
    /// Kill points and states left of successors.
    second: [u64; 2],
    /// What these states were like.
    pub(crate) scenes: BTreeSet<CrashState>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { points, states, second: [points2, states2], kills, sleeps, scenes } = self;
        write!(
            f,
            "{points} kill points of {points}, which leave {states} different states; {kills} of \
             them by true kills; {points2} kill points of successors ({states2} states); \
             {sleeps} sleeps in the middle of sending; {scenes:?}"
        )
    }
}

pub(crate) struct Sweep<'a> {
    scenario: &'a Scenario,
    random: Random,
    extent: Extent,
    report: Report,
}

/// Names the place on panic.
struct Label(String);

impl Drop for Label {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", self.0);
        }
    }
}

impl<'a> Sweep<'a> {
    pub(crate) fn new(scenario: &'a Scenario, random: Random) -> Self {
        let extent = Extent::from_environment();
        Self { scenario, random, extent, report: Report::default() }
    }

    /// Sweeps, and prints what was covered.
    pub(crate) fn run(mut self) -> Report {
        let start = Instant::now();
        let label = Label(format!("{}, NBD_STEP_SEED={}", self.scenario.name, self.random.0));
        let moments = self.every_instruction();
        for moment in self.choose(&moments) {
            self.kill(moment);
        }
        println!("{}: {}, {:.1} s", label.0, self.report, start.elapsed().as_secs_f32());
        self.report
    }

    /// Returns the moments at which the fixture changed.
    fn every_instruction(&mut self) -> Vec<Moment> {
        let mut moments = Vec::new();
        let mut kept: Vec<(u64, DeviceFixture)> = Vec::new();
        let all = self.extent.successors == usize::MAX;
        let (last, sleeps) = walk_through(DeviceFixture::new(self.scenario), |moment, fixture| {
            let _label = Label(format!("killed after {moment:?}"));
            self.report.scenes.extend(scenes(fixture));
            succeed(fixture.copy());
            moments.push(moment);
            if all {
                add(&mut self.report.second, second(moment.points, fixture.copy()));
                return;
            }
            // Any of those seen so far is as likely to be kept as any other.
            let place = self.random.below(moments.len() as u64) as usize;
            if kept.len() < self.extent.successors {
                kept.push((moment.points, fixture.copy()));
            } else if let Some(other) = kept.get_mut(place) {
                *other = (moment.points, fixture.copy());
            }
        });
        for (points, fixture) in kept {
            add(&mut self.report.second, second(points, fixture));
        }
        self.report.points = last.points;
        self.report.states = moments.len() as u64;
        self.report.sleeps = sleeps;
        moments
    }

    /// Truly kills a backend at a moment, or somewhat later: where nothing changes, nothing may
    /// depend on it. Or, should it sleep before, perhaps in its sleep.
    fn kill(&mut self, mut moment: Moment) {
        moment.steps += self.random.below(2) * self.random.below(50);
        let insomnia = self.random.below(4);
        let _label = Label(format!("truly killed at {moment:?}, in sleep {insomnia}"));
        self.report.kills += 1;
        let mut walk = SingleStep::start(DeviceFixture::new(self.scenario));
        let (mut calls, mut steps, mut sleeps) = (0, 0, 0);
        while (calls, steps) < (moment.calls, moment.steps) {
            let mut event = if calls < moment.calls { walk.leap() } else { walk.step() };
            while event == Event::Asleep {
                sleeps += 1;
                if sleeps == insomnia {
                    return succeed(walk.kill());
                }
                event = walk.wake(sleeps);
            }
            match event {
                Event::Stepped { is_call: true } => (calls, steps) = (calls + 1, 0),
                Event::Stepped { is_call: false } => steps += 1,
                Event::Asleep | Event::End => break,
            }
        }
        succeed(walk.kill());
    }

    /// Some of the moments, spread over all of them.
    fn choose(&mut self, moments: &[Moment]) -> Vec<Moment> {
        let count = self.extent.kills.min(moments.len());
        let pick = |n: usize| {
            let (from, to) = (n * moments.len() / count, (n + 1) * moments.len() / count);
            moments[from + self.random.below((to - from) as u64) as usize]
        };
        (0..count).map(pick).collect()
    }
}

/// A successor at full speed finishes the scenario.
fn succeed(fixture: DeviceFixture) {
    Process::start(&fixture).serve_to_the_end(fixture);
}

/// A successor that may in turn die after every instruction.
fn second(first: u64, fixture: DeviceFixture) -> [u64; 2] {
    let mut states = 0;
    let (last, _) = walk_through(fixture, |moment, fixture| {
        let _label = Label(format!("killed after {first} instructions, then after {moment:?}"));
        succeed(fixture.copy());
        states += 1;
    });
    [last.points, states]
}

fn add(totals: &mut [u64; 2], more: [u64; 2]) {
    totals.iter_mut().zip(more).for_each(|(total, more)| *total += more);
}

/// Steps a backend through a fixture, and shows the fixture after every instruction that changed
/// it. Returns the last moment and the number of sleeps.
fn walk_through(
    fixture: DeviceFixture,
    mut show: impl FnMut(Moment, &DeviceFixture),
) -> (Moment, u64) {
    let mut walk = SingleStep::start(fixture);
    let mut image = Image::of(&walk.fixture);
    let (mut now, mut sleeps) = (Moment::default(), 0);
    show(now, &walk.fixture);
    let mut event = walk.step();
    loop {
        match event {
            Event::Stepped { is_call } => {
                now.points += 1;
                now.steps += 1;
                if is_call {
                    (now.calls, now.steps) = (now.calls + 1, 0);
                }
                if image.renew(&walk.fixture, is_call) {
                    show(now, &walk.fixture);
                }
                event = walk.step();
            }
            Event::Asleep => {
                sleeps += 1;
                event = walk.wake(sleeps);
            }
            Event::End => break,
        }
    }
    walk.fixture.check_end();
    (now, sleeps)
}
