//! Every state that can be reached, and from each of them a way to the end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use nbd_ledger::CrashPoint;

use crate::act::Act;
use crate::invariant;
use crate::state::{Config, Process, State};
use crate::step::Op;

/// One transition.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Move {
    /// The state that all begin with.
    Start,
    Begin(Act),
    Receiver(Op, u32),
    Transmitter(Op, u32),
    Crash,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (thread, op, count) = match self {
            Self::Start => return write!(f, "a new ledger"),
            Self::Begin(act) => return write!(f, "begins to {act:?}"),
            Self::Crash => return write!(f, "dies"),
            Self::Receiver(op, count) => ("receiver", op, count),
            Self::Transmitter(op, count) => ("transmitter", op, count),
        };
        write!(f, "{thread}: {:?}, kernel: {count}, {:?}", op.effect, op.point)
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) moves: usize,
    pub(crate) ends: usize,
    /// Crash points that were passed.
    pub(crate) points: HashSet<CrashPoint>,
    /// States from which no way leads to the end.
    pub(crate) dead: usize,
}

/// Why a search ended early: what was violated, and how to get there.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) name: &'static str,
    pub(crate) says: &'static str,
    pub(crate) path: Vec<Move>,
}

/// States are remembered by 128 bits of hash: two different ones would have to agree in all of
/// them, which a search of this size will not live to see.
type Print = (u64, u64);

struct Search<'a> {
    config: &'a Config,
    hashers: [RandomState; 2],
    known: HashMap<Print, u32>,
    /// How each state was reached first.
    origins: Vec<(u32, Move)>,
    /// All transitions, from and to.
    edges: Vec<(u32, u32)>,
    ends: Vec<u32>,
    points: HashSet<CrashPoint>,
}

/// Searches every state that a lane with these requests can reach with so many crashes.
pub(crate) fn search(config: &Config, crashes: u8) -> Result<Found, Violation> {
    let mut search = Search {
        config,
        hashers: [RandomState::new(), RandomState::new()],
        known: HashMap::new(),
        origins: Vec::new(),
        edges: Vec::new(),
        ends: Vec::new(),
        points: HashSet::new(),
    };
    let mut queue = VecDeque::new();
    search.visit(0, Move::Start, State::new(config), &mut queue)?;
    while let Some((from, state)) = queue.pop_front() {
        for (how, next) in successors(config, crashes, &state) {
            search.visit(from, how, next, &mut queue)?;
        }
    }
    Ok(search.found())
}

impl Search<'_> {
    fn visit(
        &mut self,
        from: u32,
        how: Move,
        state: State,
        queue: &mut VecDeque<(u32, State)>,
    ) -> Result<(), Violation> {
        if let Move::Receiver(op, _) | Move::Transmitter(op, _) = how {
            self.points.extend(op.point);
        }
        let [one, two] = &self.hashers;
        let print = (one.hash_one(&state), two.hash_one(&state));
        let next = self.known.len() as u32;
        let id = *self.known.entry(print).or_insert(next);
        self.edges.push((from, id));
        if id != next {
            return Ok(());
        }
        self.origins.push((from, how));
        if let Some(invariant) = invariant::violated(self.config, &state) {
            let invariant::Invariant { name, says, .. } = *invariant;
            return Err(Violation { name, says, path: self.path(id) });
        }
        if state.is_complete(self.config) && state.process.as_ref().is_some_and(is_idle) {
            self.ends.push(id);
        }
        queue.push_back((id, state));
        Ok(())
    }

    fn path(&self, id: u32) -> Vec<Move> {
        let mut path = Vec::new();
        let mut at = id;
        while at != 0 {
            let (from, how) = self.origins[at as usize];
            path.push(how);
            at = from;
        }
        path.reverse();
        path
    }

    /// Walks back from the ends: what is not met has no way to any of them.
    fn found(mut self) -> Found {
        let states = self.known.len();
        let mut lives = vec![false; states];
        let mut edges = std::mem::take(&mut self.edges);
        let moves = edges.len();
        edges.sort_unstable_by_key(|&(_, to)| to);
        let mut queue = self.ends.clone();
        while let Some(id) = queue.pop() {
            if std::mem::replace(&mut lives[id as usize], true) {
                continue;
            }
            let first = edges.partition_point(|&(_, to)| to < id);
            let into = edges[first..].iter().take_while(|&&(_, to)| to == id);
            queue.extend(into.map(|&(from, _)| from));
        }
        let dead = lives.iter().filter(|&&lives| !lives).count();
        Found { states, moves, ends: self.ends.len(), points: self.points, dead }
    }
}

fn is_idle(process: &Process) -> bool {
    process.receiver.is_empty() && process.transmitter.is_empty()
}

/// Every transition that can happen next.
fn successors(config: &Config, crashes: u8, state: &State) -> Vec<(Move, State)> {
    let mut all = Vec::new();
    for act in state.acts(config) {
        let mut next = state.clone();
        next.begin(config, act);
        all.push((Move::Begin(act), next));
    }
    let Some(process) = &state.process else { return all };
    for (is_receiver, op) in
        [(true, process.receiver.front()), (false, process.transmitter.front())]
    {
        let Some(&op) = op else { continue };
        for count in op.effect.choices(config, &state.kernel) {
            let mut next = state.clone();
            let living = next.process.as_mut().expect("it lives in this state too");
            let queue = if is_receiver { &mut living.receiver } else { &mut living.transmitter };
            queue.pop_front();
            next.execute(config, op.effect, count);
            let how = if is_receiver { Move::Receiver } else { Move::Transmitter };
            all.push((how(op, count), next));
        }
    }
    if state.crashes < crashes {
        let mut next = state.clone();
        next.process = None;
        next.crashes += 1;
        all.push((Move::Crash, next));
    }
    all
}
