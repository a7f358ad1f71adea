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

mod world;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::{Command, Core, Event, Order, Procedure};
use world::{Fault, World};

/// How long a detach by force may take, whatever hangs.
const FORCE_LIMIT: Duration = Duration::from_secs(16);

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
    /// What did not hold, and the events that led there.
    violation: Option<(String, Vec<String>)>,
}

impl State {
    /// What is equal for states that differ only in numbers and in the time.
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let text = format!("{:?}{:?}", self.core.at_rest(), self.world);
        world::canonical(&text, self.now).hash(&mut hasher);
        hasher.finish()
    }

    /// Lets an event happen, and what follows at once.
    fn after(&self, event: &Event, fault: Option<Fault>) -> Result<Vec<Self>, String> {
        let mut next = self.clone();
        if *event == Event::Time {
            next.now = next.core.next_deadline().unwrap_or(next.now).max(next.now);
        }
        next.world.happened(event);
        next.feed(event, fault)?;
        next.follow_up(fault)
    }

    fn feed(&mut self, event: &Event, fault: Option<Fault>) -> Result<(), String> {
        let mut commands = self.core.handle(event, self.now);
        if let Some(fault) = fault {
            world::plant(fault, &mut self.core, &mut commands);
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
            next.world.happened(&event);
            next.feed(&event, fault)?;
            all.extend(next.follow_up(fault)?);
        }
        Ok(all)
    }

    /// A detach by force ends, with all else hanging, or with a driver that lets go.
    fn check_detach(&self, lets_go: bool, fault: Option<Fault>) -> Result<(), String> {
        if !self.core.attached || self.core.is_forced() {
            return Ok(());
        }
        let client = self.world.other_client();
        let mut state = self.clone();
        let order = Event::Order { client, order: Order::Detach { force: true } };
        let mut event = order;
        let deadline = state.now + FORCE_LIMIT;
        while !state.world.is_answered(client) {
            state = state.after(&event, fault)?.swap_remove(0);
            let helpful = lets_go.then(|| state.world.helpful(&state.core)).flatten();
            event = helpful.unwrap_or(Event::Time);
            if event == Event::Time && state.core.next_deadline().is_none_or(|due| due > deadline) {
                if state.world.is_answered(client) {
                    break;
                }
                return Err(format!(
                    "a detach by force is not answered: {:?}",
                    state.core.procedure
                ));
            }
        }
        match lets_go && state.core.end().is_none() {
            true => Err(format!("the device is not gone: {:?}", state.core.procedure)),
            false => Ok(()),
        }
    }
}

/// Explores all orders of up to `depth` events.
fn explore(first: State, depth: usize, fault: Option<Fault>) -> Found {
    let mut seen = HashSet::from([first.key()]);
    let mut layer = vec![(first, Vec::new())];
    let mut transitions = 0;
    for _ in 0..depth {
        let mut next_layer = Vec::new();
        for (state, path) in layer {
            for event in state.world.possible(&state.core) {
                transitions += 1;
                let mut path: Vec<String> = path.clone();
                path.push(format!("{event:?}"));
                let states = seen.len();
                let found = |violation| {
                    let violation = Some((violation, path.clone()));
                    Found { states, transitions, violation }
                };
                let successors = match state.after(&event, fault) {
                    Ok(successors) => successors,
                    Err(violation) => return found(violation),
                };
                for next in successors {
                    if !seen.insert(next.key()) || next.core.end().is_some() {
                        continue;
                    }
                    let checked = next
                        .check_detach(true, fault)
                        .and_then(|()| next.check_detach(false, fault));
                    if let Err(violation) = checked {
                        return found(violation);
                    }
                    next_layer.push((next, path.clone()));
                }
            }
        }
        layer = next_layer;
    }
    Found { states: seen.len(), transitions, violation: None }
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

fn expect_none(name: &str, found: &Found) {
    println!("{name}: {} states, {} transitions", found.states, found.transitions);
    if let Some((violation, path)) = &found.violation {
        panic!("{name}: {violation}\nafter:\n  {}", path.join("\n  "));
    }
}

#[test]
fn nothing_that_may_happen_to_an_attached_device_breaks_a_promise() {
    for netlink in [false, true] {
        let found = explore(attached(netlink), depth(DEPTH), None);
        expect_none(if netlink { "attached, netlink" } else { "attached, ioctl" }, &found);
        assert!(found.states > 1000, "only {} states: the model is too small", found.states);
    }
}

#[test]
fn nothing_that_may_happen_during_an_attach_breaks_a_promise() {
    for netlink in [false, true] {
        let found = explore(attaching(netlink), depth(ATTACH_DEPTH), None);
        expect_none(if netlink { "attach, netlink" } else { "attach, ioctl" }, &found);
    }
}

/// How many events follow each other. Every further one makes it four times as long; NBD_EXPLORE_DEPTH
/// in the environment is another number for both.
const DEPTH: usize = 5;
const ATTACH_DEPTH: usize = 8;

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
    ];
    for (fault, first) in faults {
        let found = explore(first, ATTACH_DEPTH, Some(fault));
        let (violation, path) = found.violation.unwrap_or_else(|| panic!("{fault:?} is not found"));
        println!(
            "{fault:?}: {violation}, after {} of {} transitions: {path:?}",
            path.len(),
            found.transitions
        );
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
