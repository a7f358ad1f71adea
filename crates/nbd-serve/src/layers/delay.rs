//! A disk that takes its time.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nbd_backend::Command;
use nbd_control::settings::Kind;

use super::layer_option::{LayerOption, OptionValues, Schema};
use super::layered::CommandHook;
use crate::prng;

const READ: usize = 0;
const WRITE: usize = 1;
const FLUSH: usize = 2;
const JITTER: usize = 3;
const SEED: usize = 4;

pub(crate) const SCHEMA: Schema = Schema {
    name: "delay",
    options: &[
        LayerOption::new("read", Kind::Time),
        LayerOption::new("write", Kind::Time),
        LayerOption::new("flush", Kind::Time),
        LayerOption::new("jitter", Kind::Time),
        LayerOption::new("seed", Kind::Number),
    ],
    bare: &[READ, WRITE, FLUSH],
};

pub(crate) struct Delay {
    options: OptionValues,
    count: AtomicU64,
}

impl Delay {
    pub(crate) fn new(options: OptionValues) -> Self {
        Self { options, count: AtomicU64::new(0) }
    }

    fn time(&self, command: &Command) -> Duration {
        let time = match command {
            Command::Read { .. } => self.options.get(READ),
            Command::Flush => self.options.get(FLUSH),
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => {
                self.options.get(WRITE)
            }
            Command::Cache { .. } | Command::BlockStatus { .. } | Command::Disconnect => 0,
        };
        let more = match self.options.get(JITTER) {
            0 => 0,
            jitter => {
                let count = self.count.fetch_add(1, Ordering::Relaxed);
                prng::mix(&[self.options.get(SEED), count]) % jitter
            }
        };
        if time == 0 { Duration::ZERO } else { Duration::from_nanos(time.saturating_add(more)) }
    }
}

impl CommandHook for Delay {
    fn run(
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
