//! A line about each command.

use std::io;
use std::time::Instant;

use nbd_backend::Command;
use nbd_control::settings::Kind;

use super::{Around, Knob, Knobs, Schema};

const ON: usize = 0;

pub(crate) const SCHEMA: Schema = Schema {
    name: "log",
    knobs: &[Knob { name: "on", kind: Kind::Switch, default: 1 }],
    bare: &[],
};

pub(crate) struct Log {
    knobs: Knobs,
}

impl Log {
    pub(crate) fn new(knobs: Knobs) -> Self {
        Self { knobs }
    }
}

impl Around for Log {
    fn around(
        &self,
        command: &Command,
        _payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        if self.knobs.get(ON) == 0 {
            return inner();
        }
        let begun = Instant::now();
        let result = inner();
        let end = match &result {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        let took = begun.elapsed().as_micros();
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
