//! A disk that fails some of its commands, which then have no effect.
//!
//! Which ones is decided by the seed: for the n-th command of the backend, so that a load without
//! concurrency meets the same errors each time; or, with `sticky`, for each place of the disk, so
//! that a bad one stays bad, whoever comes when.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use nbd_backend::Command;
use nbd_control::settings::Kind;

use super::{Around, Knob, Knobs, Schema};
use crate::numbers;

const RATE: usize = 0;
const READ: usize = 1;
const WRITE: usize = 2;
const FLUSH: usize = 3;
const ERRNO: usize = 4;
const FROM: usize = 5;
const TO: usize = 6;
const STICKY: usize = 7;
const SEED: usize = 8;

const WHOLE: u64 = 1_000_000_000;
/// The size of a place.
const PLACE: u64 = 4096;

pub(crate) const SCHEMA: Schema = Schema {
    name: "error",
    knobs: &[
        Knob::new("rate", Kind::Share),
        Knob::new("read", Kind::Share),
        Knob::new("write", Kind::Share),
        Knob::new("flush", Kind::Share),
        Knob { name: "errno", kind: Kind::Error, default: 5 },
        Knob::new("from", Kind::Bytes),
        // Everything up to the end.
        Knob::new("to", Kind::Bytes),
        Knob::new("sticky", Kind::Switch),
        Knob::new("seed", Kind::Number),
    ],
    bare: &[RATE],
};

pub(crate) struct Errors {
    knobs: Knobs,
    count: AtomicU64,
}

impl Errors {
    pub(crate) fn new(knobs: Knobs) -> Self {
        Self { knobs, count: AtomicU64::new(0) }
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
        let share = self.knobs.get(RATE).max(self.knobs.get(own));
        if share == 0 || !self.concerns(command) {
            return false;
        }
        let seed = self.knobs.get(SEED);
        let chance = |what: &[u64]| numbers::mix(what) % WHOLE < share;
        let (offset, length) = command.range();
        if self.knobs.get(STICKY) == 0 || length == 0 {
            let count = self.count.fetch_add(1, Ordering::Relaxed);
            return chance(&[seed, count]);
        }
        let places = offset / PLACE..(offset + length).div_ceil(PLACE);
        places.into_iter().any(|place| chance(&[seed, own as u64, place]))
    }

    /// Whether a command touches the part that is bad. A flush touches all of it.
    fn concerns(&self, command: &Command) -> bool {
        let (offset, length) = command.range();
        let to = match self.knobs.get(TO) {
            0 => u64::MAX,
            to => to,
        };
        length == 0 || (offset < to && offset + length > self.knobs.get(FROM))
    }
}

impl Around for Errors {
    fn around(
        &self,
        command: &Command,
        _payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        if self.fails(command) {
            return Err(io::Error::from_raw_os_error(self.knobs.get(ERRNO) as i32));
        }
        inner()
    }
}
