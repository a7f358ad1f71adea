//! What the kernel side asks for, and where it pauses.

use nbd_ledger::Layout;
use nbd_proto::CommandType;

/// A ring that a few writes fill, so that it wraps again and again.
pub(crate) const LAYOUT: Layout =
    Layout { lanes: 1, ring: 128 << 10, transmit: 128 << 10, max_payload: 64 << 10 };
/// Size of the device in bytes.
pub(crate) const DEVICE: u64 = 1 << 20;
const UNKNOWN: CommandType = CommandType(77);

/// A request without its cookie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestSpec {
    pub(crate) command: CommandType,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Requests that leave one behind the other, without waiting for answers.
    Burst(Vec<RequestSpec>),
    /// The same, but their bytes are cut at these places, and what lies before a cut is received
    /// before the rest is sent.
    Pieces(Vec<RequestSpec>, Vec<usize>),
    /// Waits until all requests are answered.
    Settle,
}

const fn spec(command: CommandType, offset: u64, length: u32) -> RequestSpec {
    RequestSpec { command, offset, length }
}

const fn read(offset: u64, length: u32) -> RequestSpec {
    spec(CommandType::READ, offset, length)
}

const fn write(offset: u64, length: u32) -> RequestSpec {
    spec(CommandType::WRITE, offset, length)
}

/// Every kind of request, cut and crowded in every way that the receive ring treats differently.
pub(crate) fn every_kind() -> Vec<Step> {
    use Step::{Burst, Pieces, Settle};
    let trim = spec(CommandType::TRIM, 0, 2048);
    let zeroes = spec(CommandType::WRITE_ZEROES, 8192, 512);
    let flush = spec(CommandType::FLUSH, 0, 0);
    let unknown = spec(UNKNOWN, 0, 0);
    let crowd = |length: u32| (0..6).map(move |n| write(100_000 + n * 50_000, length));
    vec![
        Burst(vec![write(0, 4096), write(8192, 512), read(65536, 4096)]),
        Settle,
        Burst(vec![read(0, 4096), flush, trim, zeroes, unknown]),
        Settle,
        // A header in two pieces, a payload in two pieces.
        Pieces(vec![write(4096, 20_000)], vec![10, 28, 9000]),
        // A short remainder behind a complete request, which is moved to the ring's beginning.
        Pieces(vec![read(0, 20_000), write(30_000, 3000)], vec![28 + 13]),
        Settle,
        // Too long to keep, and skipped: at once, in pieces, and longer than the ring.
        Burst(vec![write(0, 70_000), read(0, 512)]),
        Pieces(vec![write(0, 200_000), read(512, 512)], vec![28, 5000, 150_000]),
        Settle,
        Burst(vec![read(0, 100_000), read(DEVICE - 1, 2), unknown]),
        // More than the ring holds: payloads cross its end.
        Burst(crowd(40_000).collect()),
        Settle,
        Burst(vec![read(100_000, 65_536), write(0, 65_536), read(200_000, 65_536)]),
        Settle,
    ]
}

/// The same with so little data that a ledger can be written down. The bytes that are read are zeroes.
pub(crate) fn few_of_every_kind() -> Vec<Step> {
    use Step::{Burst, Pieces, Settle};
    let flush = spec(CommandType::FLUSH, 0, 0);
    let zeroes = spec(CommandType::WRITE_ZEROES, 8192, 512);
    vec![
        Burst(vec![write(0, 64), write(8192, 32), read(65_536, 4096), flush, zeroes]),
        Settle,
        Pieces(vec![read(100_000, 20_000), write(30_000, 128)], vec![28 + 13, 28 + 28 + 50]),
        Burst(vec![read(200_000, 30_000), spec(CommandType::TRIM, 0, 2048), write(4096, 48)]),
        Settle,
    ]
}

/// Reads that are answered with as much data as may be.
pub(crate) fn reads(count: u64) -> Step {
    let length = LAYOUT.max_payload;
    let read = |n| read(n * u64::from(length), length);
    Step::Burst((0..count).map(read).collect())
}

/// A seeded mixture, for kills at moments that no crash point names.
pub(crate) fn mixture(random: &mut Random, steps: usize) -> Vec<Step> {
    let mut pick = |_| {
        let max = if random.below(4) == 0 { 65_536 } else { 6000 };
        let length = 1 + random.below(max) as u32;
        let offset = random.below(DEVICE - u64::from(length));
        match random.below(16) {
            0..5 => read(offset, length),
            5..11 => write(offset, length),
            11 => spec(CommandType::FLUSH, 0, 0),
            12 => spec(CommandType::TRIM, offset, length),
            13 => spec(CommandType::WRITE_ZEROES, offset, length),
            14 => spec(UNKNOWN, offset, length),
            _ => write(0, 65_537 + length),
        }
    };
    (0..steps).map(|n| Step::Burst(vec![pick(n)])).collect()
}

/// The data of a write, different for every cookie and every place in it.
pub(crate) fn payload(cookie: u64, length: u32) -> Vec<u8> {
    let mut random = Random(cookie);
    let words = (0..length.div_ceil(8)).flat_map(|_| random.next().to_ne_bytes());
    words.take(length as usize).collect()
}

/// SplitMix64: a test that fails names its seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn from_environment() -> Self {
        let given = std::env::var("NBD_LEDGER_SEED").ok();
        let fresh = || std::process::id().into();
        Self(given.and_then(|seed| seed.parse().ok()).unwrap_or_else(fresh))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
