//! A disk that takes its time.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nbd_backend::Command;
use nbd_control::settings::Kind;

use super::{Around, Knob, Knobs, Schema};
use crate::numbers;

const READ: usize = 0;
const WRITE: usize = 1;
const FLUSH: usize = 2;
const JITTER: usize = 3;
const SEED: usize = 4;

pub(crate) const SCHEMA: Schema = Schema {
    name: "delay",
    knobs: &[
        Knob::new("read", Kind::Time),
        Knob::new("write", Kind::Time),
        Knob::new("flush", Kind::Time),
        Knob::new("jitter", Kind::Time),
        Knob::new("seed", Kind::Number),
    ],
    bare: &[READ, WRITE, FLUSH],
};

pub(crate) struct Delay {
    knobs: Knobs,
    count: AtomicU64,
}

impl Delay {
    pub(crate) fn new(knobs: Knobs) -> Self {
        Self { knobs, count: AtomicU64::new(0) }
    }

    fn time(&self, command: &Command) -> Duration {
        let time = match command {
            Command::Read { .. } => self.knobs.get(READ),
            Command::Flush => self.knobs.get(FLUSH),
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => {
                self.knobs.get(WRITE)
            }
            Command::Cache { .. } | Command::BlockStatus { .. } | Command::Disconnect => 0,
        };
        let more = match self.knobs.get(JITTER) {
            0 => 0,
            jitter => {
                let count = self.count.fetch_add(1, Ordering::Relaxed);
                numbers::mix(&[self.knobs.get(SEED), count]) % jitter
            }
        };
        if time == 0 { Duration::ZERO } else { Duration::from_nanos(time.saturating_add(more)) }
    }
}

impl Around for Delay {
    fn around(
        &self,
        command: &Command,
        _payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let time = self.time(command);
        if !time.is_zero() {
            std::thread::sleep(time);
        }
        inner()
    }
}
