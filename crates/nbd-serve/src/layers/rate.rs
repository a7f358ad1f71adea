//! A disk of a certain speed.
//!
//! Each command is given its time slot behind the last one's, and waits for it to begin. A disk
//! that had nothing to do for a while gains nothing by that.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbd_backend::Command;
use nbd_control::settings::Kind;

use super::layer_option::{LayerOption, OptionValues, Schema};
use super::layered::CommandHook;

const BYTES: usize = 0;
const OPS: usize = 1;

/// Longest wait, so that a speed that is put up is soon felt.
const MAX_WAIT: Duration = Duration::from_secs(3600);

pub(crate) const SCHEMA: Schema = Schema {
    name: "rate",
    options: &[LayerOption::new("bytes", Kind::Bytes), LayerOption::new("ops", Kind::Number)],
    bare: &[BYTES],
};

pub(crate) struct Rate {
    options: OptionValues,
    /// When the disk will have done what it was given.
    free: Mutex<Instant>,
}

impl Rate {
    pub(crate) fn new(options: OptionValues) -> Self {
        Self { options, free: Mutex::new(Instant::now()) }
    }

    fn cost(&self, command: &Command) -> Duration {
        // Only those that carry data cost bytes.
        let bytes = match command {
            Command::Read { length, .. } | Command::Write { length, .. } => u64::from(*length),
            _ => 0,
        };
        let time = |amount: u64, a_second: u64| match a_second {
            0 => Duration::ZERO,
            _ => Duration::from_secs_f64((amount as f64 / a_second as f64).min(3600.0)),
        };
        time(bytes, self.options.get(BYTES)).max(time(1, self.options.get(OPS)))
    }
}

impl CommandHook for Rate {
    fn run(
        &self,
        command: &Command,
        _payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let cost = self.cost(command);
        if !cost.is_zero() {
            let now = Instant::now();
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let end = ((*free).max(now) + cost).min(now + MAX_WAIT);
            *free = end;
            drop(free);
            std::thread::sleep(end - now);
        }
        inner()
    }
}
