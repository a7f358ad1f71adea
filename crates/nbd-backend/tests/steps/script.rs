//! What the kernel side asks for: short scenarios, each about one thing that can go wrong.

use nbd_ledger::Layout;
use nbd_proto::{CommandFlags, CommandType};

/// The smallest ledger that there can be: two long writes reach beyond the ring's end.
pub(crate) const LAYOUT: Layout =
    Layout { lanes: 1, ring: 8192, transmit: 8192, max_payload: 4096 };
/// Size of the device in bytes.
pub(crate) const DEVICE: u64 = 32 << 10;
const BLOCK: u64 = 512;
const UNKNOWN: CommandType = CommandType(77);

/// A request without its cookie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) command: CommandType,
    pub(crate) flags: CommandFlags,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Requests one behind the other. Their bytes are cut at these places, and what lies before a
    /// cut is received before the rest is sent.
    Ask(Vec<Wish>, Vec<usize>),
    /// Waits until everything is answered.
    Settle,
    /// Disconnects. Everything must be answered.
    Leave,
}

/// How the backend executes what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// At once, where it was received.
    Inline,
    /// It holds all requests until a flush comes, and then answers them, the last first and the
    /// flush at the end. So the backend that executes the flush has all requests that were held
    /// with it.
    Held,
    /// On worker threads.
    Workers,
}

/// A script, and how it is played.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) manner: Manner,
    /// The lane's buffer holds two pages and the kernel reads only once the backend sleeps in the
    /// middle of sending.
    pub(crate) narrow: bool,
    pub(crate) steps: Vec<Step>,
}

const fn wish(command: CommandType, offset: u64, length: u32) -> Wish {
    Wish { command, flags: CommandFlags::NONE, offset: offset * BLOCK, length }
}

const fn read(block: u64, length: u32) -> Wish {
    wish(CommandType::READ, block, length)
}

const fn write(block: u64, length: u32) -> Wish {
    wish(CommandType::WRITE, block, length)
}

const fn durable(wish: Wish) -> Wish {
    Wish { flags: CommandFlags::FUA, ..wish }
}

const FLUSH: Wish = wish(CommandType::FLUSH, 0, 0);

fn scenario(name: &'static str, mut steps: Vec<Step>) -> Scenario {
    steps.extend([Step::Settle, Step::Leave]);
    Scenario { name, manner: Manner::Inline, narrow: false, steps }
}

fn ask(wishes: &[Wish]) -> Step {
    Step::Ask(wishes.to_vec(), Vec::new())
}

fn pieces(wishes: &[Wish], cuts: &[usize]) -> Step {
    Step::Ask(wishes.to_vec(), cuts.to_vec())
}

/// Every command by itself: received, executed and answered before the next one is sent.
pub(crate) fn one_by_one() -> Scenario {
    let trim = wish(CommandType::TRIM, 0, 512);
    let zeroes = wish(CommandType::WRITE_ZEROES, 1, 512);
    let all = [write(0, 1536), durable(write(4, 1024)), FLUSH, trim, zeroes, read(0, 3072)];
    scenario("one by one", all.iter().flat_map(|&wish| [ask(&[wish]), Step::Settle]).collect())
}

/// Flushes, each by itself, for workers.
pub(crate) fn flushes(count: usize) -> Scenario {
    let steps = (0..count).flat_map(|_| [ask(&[FLUSH]), Step::Settle]).collect();
    Scenario { manner: Manner::Workers, ..scenario("flushes", steps) }
}

/// Many at once: taken by one receive and answered by one transmission, one of them refused.
pub(crate) fn at_once() -> Scenario {
    let zeroes = durable(wish(CommandType::WRITE_ZEROES, 16, 1024));
    let burst = [write(0, 1024), read(8, 512), zeroes, wish(UNKNOWN, 0, 0), FLUSH];
    let after = [read(0, 1024), durable(write(8, 512))];
    scenario("at once", vec![ask(&burst), Step::Settle, ask(&after)])
}

/// A payload that reaches across the ring's end, as a part of an older request is in the way of
/// beginning anew.
pub(crate) fn across_the_end() -> Scenario {
    let crowd = [read(60, 512), write(0, 2560), write(8, 4096), write(16, 2048)];
    let steps =
        vec![pieces(&crowd, &[1500, 8220]), Step::Settle, ask(&[read(8, 4096), write(16, 512)])];
    scenario("across the ring's end", steps)
}

/// Headers and payloads in pieces, and a short rest that moves to the ring's beginning.
pub(crate) fn in_pieces() -> Scenario {
    let two = [write(0, 1024), read(16, 512)];
    let rest = [read(16, 1024), write(32, 1024)];
    let steps = vec![
        pieces(&two, &[10, 28, 700, 28 + 1024 + 27]),
        pieces(&rest, &[28 + 13, 28 + 28 + 100]),
        Step::Settle,
        ask(&[FLUSH]),
    ];
    scenario("in pieces", steps)
}

/// Writes too long to keep, one of them longer than the ring: skipped and refused.
pub(crate) fn skipped() -> Scenario {
    let steps = vec![
        ask(&[write(0, 4608), write(0, 512)]),
        Step::Settle,
        pieces(&[write(8, 16_384), read(0, 512)], &[28, 9000]),
    ];
    scenario("skipped payloads", steps)
}

/// Answered in another order than asked, each by a transmission of its own.
pub(crate) fn out_of_order() -> Scenario {
    let crowd = [write(0, 1024), read(8, 1024), write(16, 512), read(24, 512), FLUSH];
    let held = Manner::Held;
    let steps = vec![
        pieces(&crowd, &[28 + 1024 + 28 + 40]),
        Step::Settle,
        ask(&[read(0, 512), durable(write(8, 3000 / 512 * 512)), FLUSH]),
    ];
    Scenario { manner: held, ..scenario("out of order", steps) }
}

/// The kernel does not read: replies fill the socket, are sent in part, and are continued. Two of
/// them make one transmission, which is longer than what the socket takes.
pub(crate) fn full_socket() -> Scenario {
    let pair = [read(8, 3584), read(16, 3584)];
    let steps = vec![
        ask(&[write(0, 1024), read(24, 3584), FLUSH]),
        ask(&pair),
        Step::Settle,
        ask(&pair),
        Step::Settle,
        ask(&[read(0, 4096), read(32, 3584), read(40, 4096)]),
    ];
    Scenario { narrow: true, ..scenario("full socket", steps) }
}

/// A seeded mixture for kills at random moments. No two of its requests touch the same block.
pub(crate) fn mixture(random: &mut Random) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut block = 0;
    while block < DEVICE / BLOCK {
        let most = (DEVICE / BLOCK - block).min(8);
        let length = (1 + random.below(most)) * BLOCK;
        let mut wish = match random.below(12) {
            0..4 => read(block, length as u32),
            4..9 => write(block, length as u32),
            9 => wish(CommandType::TRIM, block, length as u32),
            10 => wish(CommandType::WRITE_ZEROES, block, length as u32),
            _ => wish(UNKNOWN, block, length as u32),
        };
        if wish.command.is_write() && random.below(4) == 0 {
            wish.flags = CommandFlags::FUA;
        }
        steps.push(ask(&[wish]));
        block += length / BLOCK;
    }
    steps.push(Step::Settle);
    steps.push(ask(&[FLUSH]));
    steps.push(Step::Settle);
    steps
}

/// The data of a write, different for every cookie and every place in it.
pub(crate) fn payload(cookie: u64, length: u32) -> Vec<u8> {
    let mut random = Random(cookie);
    let words = (0..length.div_ceil(8)).flat_map(|_| random.next().to_ne_bytes());
    words.take(length as usize).collect()
}

/// SplitMix64: a test that fails names its seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The seed is `NBD_STEP_SEED`, or a new one.
    pub(crate) fn from_environment() -> Self {
        let given = std::env::var("NBD_STEP_SEED").ok();
        let fresh = || std::process::id().into();
        Self(given.and_then(|seed| seed.parse().ok()).unwrap_or_else(fresh))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}
