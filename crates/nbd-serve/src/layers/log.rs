//! A line about each command, unless there are too many of them.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nbd_backend::Command;
use nbd_control::settings::Kind;
use nbd_log::Allowance;

use super::layer_option::{LayerOption, OptionValues, Schema};
use super::layered::CommandHook;

const ON: usize = 0;
/// Lines a second, and at once. Less than what a log takes as a whole, so that these lines do not
/// drive out all others.
const RATE: u32 = 50;
const BURST: u32 = 500;

pub(crate) const SCHEMA: Schema = Schema {
    name: "log",
    options: &[LayerOption { name: "on", kind: Kind::Switch, default: 1 }],
    bare: &[],
};

pub(crate) struct Log {
    options: OptionValues,
    shown: Mutex<Shown>,
}

/// Which commands are shown.
struct Shown {
    allowance: Allowance,
    /// How many were not, since the last one that was.
    hidden: u64,
}

impl Shown {
    /// Whether a command is shown, and how many before it were not.
    fn admits(&mut self, now: Instant) -> Option<u64> {
        if self.allowance.take(1, now) {
            return Some(std::mem::take(&mut self.hidden));
        }
        self.hidden += 1;
        None
    }
}

impl Log {
    pub(crate) fn new(options: OptionValues) -> Self {
        let allowance = Allowance::new(RATE, BURST, Instant::now());
        Self { options, shown: Mutex::new(Shown { allowance, hidden: 0 }) }
    }
}

impl CommandHook for Log {
    fn run(
        &self,
        command: &Command,
        _payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        if self.options.get(ON) == 0 {
            return inner();
        }
        let begun = Instant::now();
        let result = inner();
        let now = Instant::now();
        let admitted = self.shown.lock().unwrap_or_else(PoisonError::into_inner).admits(now);
        let Some(hidden) = admitted else {
            return result;
        };
        if hidden > 0 {
            tracing::info!("{hidden} commands are not shown here: more than {RATE} a second");
        }
        let end = match &result {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        let took = now.saturating_duration_since(begun).as_micros();
        tracing::info!("{}: {end}, {took} us", describe(command));
        result
    }
}

/// `write 4096 at 1048576, fua`.
fn describe(command: &Command) -> String {
    let name = match command {
        Command::Read { .. } => "read",
        Command::Write { .. } => "write",
        Command::Flush => return "flush".into(),
        Command::Trim { .. } => "trim",
        Command::Cache { .. } => "cache",
        Command::WriteZeroes { .. } => "zero",
        Command::BlockStatus { .. } => "status",
        Command::Disconnect => return "disconnect".into(),
    };
    let (offset, length) = command.range();
    let fua = match command {
        Command::Write { fua: true, .. }
        | Command::Trim { fua: true, .. }
        | Command::WriteZeroes { fua: true, .. } => ", fua",
        _ => "",
    };
    format!("{name} {length} at {offset}{fua}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_disk_is_shown_in_part_and_the_rest_counted() {
        let now = Instant::now();
        let mut shown = Shown { allowance: Allowance::new(RATE, BURST, now), hidden: 0 };
        let count = (0..50_000).filter(|_| shown.admits(now).is_some()).count();
        assert_eq!(count, BURST as usize);
        let later = now + std::time::Duration::from_secs(1);
        assert_eq!(shown.admits(later), Some(50_000 - u64::from(BURST)));
        assert_eq!(shown.admits(later), Some(0));
    }
}
