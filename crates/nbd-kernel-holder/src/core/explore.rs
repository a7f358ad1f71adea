//! Exhaustive exploration: every order of events up to a depth, with equal states merged, and what must
//! hold in all of them.
//!
//! The world around the core is a small model: processes that may come, die or hang, a driver that may
//! hold on, a disk that may be full. In each state every event that could happen there happens, each in a
//! copy. Time stands still until a deadline fires.
//!
//! What is checked after each event:
//! - at most one living process has been granted the lanes, and only after the state that names it was
//!   written;
//! - the driver gets the lanes only after the state that names the sitter was written: nothing else
//!   makes this process the holder;
//! - no order is answered twice, and none is unanswered at the end;
//! - nothing is started once the lanes have ended;
//! - a detach by force ends within [`FORCE_LIMIT`], whatever hangs, and frees the device if only the
//!   driver lets go.
//!
//! That these are not empty words is shown by faults that are planted into the core: each is found.

mod canonical;
mod faults;
mod world;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::time::{Duration, Instant};

use super::ownership::Kind;
use super::procedure::Procedure;
use super::{Command, Core, Event, Order};
use canonical::canonical;
use faults::{Fault, plant};
use world::World;

/// How long a detach by force may take, whatever hangs.
const FORCE_LIMIT: Duration = Duration::from_secs(10);
/// How many events may follow each other in a detach, or at one moment.
const MAX_STEPS: usize = 200;

/// The core and the world around it.
#[derive(Clone)]
struct State {
    core: Core,
    world: World,
    now: Instant,
}

struct Found {
    states: usize,
    transitions: usize,
    /// Of the detaches by force.
    longest: Duration,
    /// What did not hold, and the events that led there.
    violation: Option<(String, Vec<String>)>,
}

impl State {
    /// What is equal for states that differ only in numbers and in the time.
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let text = format!("{:?}{:?}", self.core.at_rest(), self.world);
        canonical(&text, self.now).hash(&mut hasher);
        hasher.finish()
    }

    /// Lets an event happen, and what follows at once.
    fn after(&self, event: &Event, fault: Option<Fault>) -> Result<Vec<Self>, String> {
        let mut next = self.clone();
        if *event == Event::Time {
            next.now = next.core.next_deadline().unwrap_or(next.now).max(next.now);
        }
        next.world.happened(event, &next.core);
        next.feed(event, fault)?;
        next.follow_up(fault)
    }

    fn feed(&mut self, event: &Event, fault: Option<Fault>) -> Result<(), String> {
        let mut commands = self.core.handle(event, self.now);
        if let Some(fault) = fault {
            plant(fault, &mut self.core, &mut commands);
        }
        for command in &commands {
            self.world.carry_out(command, &self.core)?;
        }
        match &self.core.procedure {
            Procedure::Ended(end) => self.world.check_end(end),
            _ => Ok(()),
        }
    }

    /// What the event loop answers before anything else can happen.
    fn follow_up(self, fault: Option<Fault>) -> Result<Vec<Self>, String> {
        let Some(outcomes) = self.world.immediate() else {
            return Ok(vec![self]);
        };
        let mut all = Vec::new();
        for event in outcomes {
            let mut next = self.clone();
            next.world.happened(&event, &next.core);
            next.feed(&event, fault)?;
            all.extend(next.follow_up(fault)?);
        }
        Ok(all)
    }

    /// A detach by force ends, with all else hanging, or with a driver that lets go. `outcome` is which of
    /// the answers comes where several are possible at once.
    fn check_detach(
        &self,
        lets_go: bool,
        outcome: usize,
        fault: Option<Fault>,
    ) -> Result<Duration, String> {
        let was_attached = self.core.device.attached || self.core.ownership.is_shutting_down();
        if !was_attached || self.core.is_forced() || self.core.end().is_some() {
            return Ok(Duration::ZERO);
        }
        let client = self.world.other_client();
        let mut state = self.clone();
        let mut event = Event::Order { client, order: Order::Detach { force: true } };
        let deadline = state.now + FORCE_LIMIT;
        let mut steps = 0;
        while !state.world.is_answered(client) {
            let mut outcomes = state.after(&event, fault)?;
            state = outcomes.swap_remove(outcome.min(outcomes.len() - 1));
            let helpful = lets_go.then(|| state.world.helpful(&state.core)).flatten();
            event = helpful.unwrap_or(Event::Time);
            steps += 1;
            let has_deadline = state.core.next_deadline().is_some_and(|due| due <= deadline);
            let is_over = event == Event::Time && !has_deadline;
            if (is_over || steps > MAX_STEPS) && !state.world.is_answered(client) {
                return Err(format!(
                    "a detach by force is not answered: {:?}",
                    state.core.procedure
                ));
            }
        }
        match lets_go && state.core.end().is_none() {
            true => Err(format!("the device is not gone: {:?}", state.core.procedure)),
            false => Ok(state.now - self.now),
        }
    }

    /// All of that.
    fn check_detaches(&self, fault: Option<Fault>) -> Result<Duration, String> {
        let mut longest = Duration::ZERO;
        for outcome in 0..3 {
            for lets_go in [true, false] {
                longest = longest.max(self.check_detach(lets_go, outcome, fault)?);
            }
        }
        Ok(longest)
    }

    /// Where all goes well every order is answered, but for those that wait for a backend.
    fn check_settles(&self, fault: Option<Fault>) -> Result<(), String> {
        let mut state = self.clone();
        let mut event = state.world.helpful(&state.core).unwrap_or(Event::Time);
        for _ in 0..MAX_STEPS {
            if state.is_settled() {
                return Ok(());
            }
            state = state.after(&event, fault)?.swap_remove(0);
            let helpful = state.world.helpful(&state.core);
            event = match (helpful, state.core.next_deadline()) {
                (Some(event), _) => event,
                (None, Some(_)) => Event::Time,
                (None, None) => break,
            };
        }
        match state.is_settled() {
            true => Ok(()),
            false => Err(format!("an order is not answered where all goes well: {:?}", state.core)),
        }
    }

    fn is_settled(&self) -> bool {
        self.core.end().is_some() || self.world.open_orders(&self.core) == 0
    }

    /// No deadline stays that has passed, or the event loop would not rest.
    fn check_deadlines(&self) -> Result<(), String> {
        let mut state = self.clone();
        for _ in 0..MAX_STEPS {
            match state.core.next_deadline() {
                Some(due) if due <= state.now => {
                    let mut outcomes = state.after(&Event::Time, None)?;
                    state = outcomes.swap_remove(0);
                }
                _ => return Ok(()),
            }
        }
        Err(format!("a deadline that has passed stays: {:?}", state.core))
    }
}

/// Explores all orders of up to `depth` events.
fn explore(first: State, depth: usize, fault: Option<Fault>) -> Found {
    let mut seen = HashSet::from([first.key()]);
    let mut layer = vec![(first, Vec::new())];
    let (mut transitions, mut longest) = (0, Duration::ZERO);
    for _ in 0..depth {
        let mut next_layer = Vec::new();
        for (state, path) in layer {
            for event in state.world.possible(&state.core) {
                transitions += 1;
                let mut path: Vec<String> = path.clone();
                path.push(format!("{event:?}"));
                let (states, longest_yet) = (seen.len(), longest);
                let found = |violation| {
                    let violation = Some((violation, path.clone()));
                    Found { states, transitions, longest: longest_yet, violation }
                };
                let successors = match state.after(&event, fault) {
                    Ok(successors) => successors,
                    Err(violation) => return found(violation),
                };
                for next in successors {
                    if !seen.insert(next.key()) || next.core.end().is_some() {
                        continue;
                    }
                    let checked = next.check_detaches(fault);
                    let checked = checked.and_then(|took| next.check_deadlines().map(|()| took));
                    match checked.and_then(|took| next.check_settles(fault).map(|()| took)) {
                        Ok(took) => longest = longest.max(took),
                        Err(violation) => return found(violation),
                    }
                    next_layer.push((next, path.clone()));
                }
            }
        }
        layer = next_layer;
    }
    Found { states: seen.len(), transitions, longest, violation: None }
}

/// An attached device that is served.
fn attached(netlink: bool) -> State {
    let mut state = attaching(netlink);
    let mut events = 0;
    while !state.core.is_idle() {
        let helpful = state.world.helpful(&state.core);
        let event = helpful.unwrap_or(Event::Time);
        state = state.after(&event, None).expect("an attach that succeeds").swap_remove(0);
        events += 1;
        assert!(events < 100, "the attach does not end: {:?}", state.core.procedure);
    }
    state
}

fn attaching(netlink: bool) -> State {
    let now = Instant::now();
    let state = State { core: world::core(netlink, now), world: World::default(), now };
    state.after(&Event::Begin, None).expect("a beginning").swap_remove(0)
}

/// An adopted device, whose backend lives and is paused or not.
fn adopted(netlink: bool, is_paused: bool) -> State {
    let now = Instant::now();
    let mut core = world::core(netlink, now);
    core.set_adopted(3, true);
    let backend = core.new_backend();
    core.adopt_owner(backend, Kind::Program, is_paused);
    let state = State { core, world: World::of_adopted(backend), now };
    let event = if is_paused { Event::AdoptedUnwanted } else { Event::StateChanged };
    state.after(&event, None).expect("an adoption").swap_remove(0)
}

/// After an order, and so many events of a world where all goes well.
fn ordered(state: &State, order: Order, events: usize) -> State {
    let client = world::first_client();
    let event = Event::Order { client, order };
    let mut state = state.after(&event, None).expect("an order").swap_remove(0);
    for _ in 0..events {
        let event = state.world.helpful(&state.core).unwrap_or(Event::Time);
        state = state.after(&event, None).expect("an event").swap_remove(0);
    }
    state
}

/// The numbers are worth reading where all tests pass, and so the test runner does not get them to keep.
fn tell(text: std::fmt::Arguments<'_>) {
    writeln!(std::io::stderr(), "exploration: {text}").expect("standard error");
}

fn expect_none(name: &str, first: State, depth: usize) {
    let found = explore(first, depth, None);
    tell(format_args!(
        "{name}: {} states, {} transitions to a depth of {depth}; a detach by force takes {:?} at most",
        found.states, found.transitions, found.longest
    ));
    if let Some((violation, path)) = &found.violation {
        panic!("{name}: {violation}\nafter:\n  {}", path.join("\n  "));
    }
}

#[test]
fn nothing_that_may_happen_to_an_attached_device_breaks_a_promise_ioctl() {
    expect_none("attached, ioctl", attached(false), depth(DEPTH));
}

#[test]
fn nothing_that_may_happen_to_an_attached_device_breaks_a_promise_netlink() {
    expect_none("attached, netlink", attached(true), depth(DEPTH));
}

#[test]
fn nothing_that_may_happen_during_an_attach_breaks_a_promise() {
    expect_none("attach, ioctl", attaching(false), depth(ATTACH_DEPTH));
    expect_none("attach, netlink", attaching(true), depth(ATTACH_DEPTH));
}

#[test]
fn nothing_that_may_happen_to_an_adopted_device_breaks_a_promise() {
    expect_none("adopted", adopted(false, false), depth(DEPTH - 1));
    expect_none("adopted, paused", adopted(true, true), depth(DEPTH - 1));
}

/// What is deeper than the explorations from the beginning come.
#[test]
fn nothing_that_may_happen_in_the_middle_of_an_order_breaks_a_promise() {
    for netlink in [false, true] {
        let api = if netlink { "netlink" } else { "ioctl" };
        let first = attached(netlink);
        let detach = Order::Detach { force: false };
        for events in [2, 3, 5] {
            let name = format!("{events} events into a detach, {api}");
            expect_none(&name, ordered(&first, detach.clone(), events), depth(DEPTH - 1));
        }
        let fail = Order::Fail { kill: true, in_flight: true };
        expect_none(
            &format!("answering with EIO, {api}"),
            ordered(&first, fail, 3),
            depth(DEPTH - 1),
        );
        let grow = Order::Resize { size: Some(2 * world::SIZE), force: false };
        expect_none(&format!("growing, {api}"), ordered(&first, grow, 4), depth(DEPTH - 1));
    }
}

/// How many events follow each other. Every further one makes it four times as long; NBD_EXPLORE_DEPTH
/// in the environment is another number for both.
const DEPTH: usize = 4;
const ATTACH_DEPTH: usize = 7;

fn depth(usual: usize) -> usize {
    let wanted = std::env::var("NBD_EXPLORE_DEPTH").ok();
    wanted.map_or(usual, |depth| depth.parse().expect("a number in NBD_EXPLORE_DEPTH"))
}

#[test]
fn every_planted_fault_is_found() {
    let faults = [
        (Fault::GrantBeforeDeath, attached(false)),
        (Fault::GrantBeforePersisted, attached(false)),
        (Fault::SecondHolder, attaching(false)),
        (Fault::ForceNotAnswered, attached(false)),
        (Fault::SpareDuringShutdown, attached(false)),
        (Fault::NoWordOfNone, attached(false)),
        (Fault::AnsweredTwice, attached(false)),
    ];
    for (fault, first) in faults {
        let found = explore(first, ATTACH_DEPTH, Some(fault));
        let (violation, path) = found.violation.unwrap_or_else(|| panic!("{fault:?} is not found"));
        tell(format_args!(
            "{fault:?} is found after {} transitions: {violation}\n    {}",
            found.transitions,
            path.join("\n    ")
        ));
    }
}

/// Commands are only compared where a test wants it.
#[test]
fn an_attach_begins_with_the_join_socket_and_the_program() {
    let mut core = world::core(false, Instant::now());
    let commands = core.handle(&Event::Begin, Instant::now());
    assert_eq!(commands[0], Command::OpenJoin);
    assert!(matches!(commands[1], Command::StartProgram { probe: false, .. }), "{commands:?}");
}
