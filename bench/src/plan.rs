//! What is asked for, in which order.

use std::num::NonZero;

use clap::{Args, ValueEnum};
use nbd_proto::{CommandFlags, CommandType, Request};

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// Reads at random places.
    Randread,
    /// Writes at random places.
    Randwrite,
    /// 70 % reads and 30 % writes at random places.
    Randrw,
    /// Reads one behind the other.
    Read,
    /// Writes one behind the other.
    Write,
    /// A write at a random place, then a flush, and so on.
    Fsync,
    /// Trims at random places.
    Trim,
    /// Flushes only: requests without payload, which need no storage.
    Flush,
}

/// How much of what.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// What is asked for.
    #[arg(long, value_enum, default_value = "randread")]
    pub pattern: Pattern,
    /// Bytes of a request.
    #[arg(long, default_value_t = 4096)]
    pub block: u32,
    /// Requests in flight on each connection.
    #[arg(long, default_value_t = 1)]
    pub depth: usize,
    /// Connections, or lanes.
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// How long.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// How many requests on each connection, instead of a time.
    #[arg(long)]
    pub requests: Option<u64>,
    /// Send requests in groups of `depth`, each when all of the group before are answered: the
    /// server then sees the same in every run.
    #[arg(long)]
    pub lockstep: bool,
    /// Wait for answers asleep even if there is a processor for each connection and one for its
    /// server. Most clients do; how quickly this program is woken is measured then as well.
    #[arg(long)]
    pub sleep: bool,
}

impl Plan {
    /// Whether connections look for answers instead of sleeping: if there is a processor for each,
    /// and another for its server.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        !self.sleep && 2 * self.jobs <= processors
    }
}

/// Makes requests up.
#[derive(Debug)]
pub struct Author {
    pattern: Pattern,
    block: u64,
    blocks: u64,
    count: u64,
    state: u64,
}

impl Author {
    /// For connection number `job` of a plan, on a device of `size` bytes.
    #[must_use]
    pub fn new(plan: &Plan, job: usize, size: u64) -> Self {
        let block = u64::from(plan.block);
        let blocks = (size / block).max(1);
        // Sequential connections do not follow in each other's steps.
        let count = blocks / plan.jobs as u64 * job as u64;
        Self { pattern: plan.pattern, block, blocks, count, state: job as u64 + 1 }
    }

    /// The next request.
    pub fn next(&mut self, cookie: u64) -> Request {
        self.count += 1;
        let (random, dice) = (self.random(), self.random() % 10);
        let (command, place) = match self.pattern {
            Pattern::Randread => (CommandType::READ, random),
            Pattern::Randwrite => (CommandType::WRITE, random),
            Pattern::Randrw if dice < 7 => (CommandType::READ, random),
            Pattern::Randrw => (CommandType::WRITE, random),
            Pattern::Read => (CommandType::READ, self.count),
            Pattern::Write => (CommandType::WRITE, self.count),
            Pattern::Fsync if self.count.is_multiple_of(2) => (CommandType::FLUSH, 0),
            Pattern::Fsync => (CommandType::WRITE, random),
            Pattern::Trim => (CommandType::TRIM, random),
            Pattern::Flush => (CommandType::FLUSH, 0),
        };
        let (offset, length) = match command {
            CommandType::FLUSH => (0, 0),
            _ => (place % self.blocks * self.block, self.block as u32),
        };
        Request { flags: CommandFlags::NONE, command, cookie, offset, length }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }
}
