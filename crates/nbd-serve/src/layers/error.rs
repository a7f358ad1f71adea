//! A disk that fails some of its commands, which then have no effect.
//!
//! Which ones is decided by the seed: for the n-th command of the backend, so that a load without
//! concurrency meets the same errors each time; or, with `sticky`, for each place of the disk, so
//! that a bad one stays bad, whoever comes when.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use nbd_backend::Command;
use nbd_control::settings::Kind;

use super::layer_option::{LayerOption, OptionValues, Schema};
use super::layered::CommandHook;
use crate::prng;

const RATE: usize = 0;
const READ: usize = 1;
const WRITE: usize = 2;
const FLUSH: usize = 3;
const ERRNO: usize = 4;
const FROM: usize = 5;
const TO: usize = 6;
const STICKY: usize = 7;
const SEED: usize = 8;

const SHARE_SCALE: u64 = 1_000_000_000;
/// The size of a place.
const PLACE_LEN: u64 = 4096;

pub(crate) const SCHEMA: Schema = Schema {
    name: "error",
    options: &[
        LayerOption::new("rate", Kind::Share),
        LayerOption::new("read", Kind::Share),
        LayerOption::new("write", Kind::Share),
        LayerOption::new("flush", Kind::Share),
        LayerOption { name: "errno", kind: Kind::Error, default: 5 },
        LayerOption::new("from", Kind::Bytes),
        // Everything up to the end.
        LayerOption::new("to", Kind::Bytes),
        LayerOption::new("sticky", Kind::Switch),
        LayerOption::new("seed", Kind::Number),
    ],
    bare: &[RATE],
};

pub(crate) struct Errors {
    options: OptionValues,
    count: AtomicU64,
}

impl Errors {
    pub(crate) fn new(options: OptionValues) -> Self {
        Self { options, count: AtomicU64::new(0) }
    }

    fn fails(&self, command: &Command) -> bool {
        let own = match command {
            Command::Read { .. } => READ,
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => WRITE,
            Command::Flush => FLUSH,
            Command::Cache { .. } | Command::BlockStatus { .. } | Command::Disconnect => {
                return false;
            }
        };
        let share = self.options.get(RATE).max(self.options.get(own));
        if share == 0 || !self.concerns(command) {
            return false;
        }
        let seed = self.options.get(SEED);
        let chance = |what: &[u64]| prng::mix(what) % SHARE_SCALE < share;
        let (offset, length) = command.range();
        if self.options.get(STICKY) == 0 || length == 0 {
            let count = self.count.fetch_add(1, Ordering::Relaxed);
            return chance(&[seed, count]);
        }
        let places = offset / PLACE_LEN..(offset + length).div_ceil(PLACE_LEN);
        places.into_iter().any(|place| chance(&[seed, own as u64, place]))
    }

    /// Whether a command touches the part that is bad. A flush touches all of it.
    fn concerns(&self, command: &Command) -> bool {
        let (offset, length) = command.range();
        let to = match self.options.get(TO) {
            0 => u64::MAX,
            to => to,
        };
        length == 0 || (offset < to && offset + length > self.options.get(FROM))
    }
}

impl CommandHook for Errors {
    fn run(
        &self,
        command: &Command,
        _payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        if self.fails(command) {
            return Err(io::Error::from_raw_os_error(self.options.get(ERRNO) as i32));
        }
        inner()
    }
}
