//! Parsing the command line, and completing it for a shell that asks.

use std::fs;

use clap::{Command, CommandFactory, Parser};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::CompleteEnv;
use nbd_control::registry::Registry;

use crate::cli::Arguments;
use crate::context::print;
use crate::error::Error;

/// Parses the command line. `None` means that it asked for help or the version, and has it.
pub(crate) fn parse() -> Result<Option<Arguments>, Error> {
    // Does nothing unless a shell asks, and then ends the program.
    CompleteEnv::with_factory(completed).complete();
    match Arguments::try_parse() {
        Ok(arguments) => Ok(Some(arguments)),
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            Err(Error::Usage(text.trim_end().to_string()))
        }
        Err(error) => print(&error.render().to_string()).map(|()| None),
    }
}

/// The definition, and which devices there are now.
fn completed() -> Command {
    Arguments::command().mut_subcommands(|command| {
        let names: fn() -> Vec<CompletionCandidate> = match command.get_name() {
            "attach" => free,
            _ => attached,
        };
        command.mut_args(|argument| match argument.get_id().as_str() {
            "device" => argument.add(ArgValueCandidates::new(names)),
            _ => argument,
        })
    })
}

/// Devices in the registry. An option of the command line that is being typed is not known yet.
fn attached() -> Vec<CompletionCandidate> {
    let devices = Registry::new(None).devices().unwrap_or_default();
    devices.into_iter().map(|index| CompletionCandidate::new(format!("nbd{index}"))).collect()
}

/// Devices of the driver that are not set up.
fn free() -> Vec<CompletionCandidate> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> =
        names.filter(|name| name.starts_with("nbd") && !has_pid(name)).collect();
    names.sort();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The driver shows who has set a device up.
fn has_pid(name: &str) -> bool {
    fs::exists(format!("/sys/block/{name}/pid")).unwrap_or(false)
}
