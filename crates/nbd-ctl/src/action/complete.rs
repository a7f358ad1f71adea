//! What a shell may complete a command line with: devices, SPECs, files.

use std::ffi::OsStr;
use std::fs;

use clap::Command;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use nbd_control::completion;
use nbd_control::registry::Registry;

use crate::cli::Arguments;
use crate::config::{Config, default_file};

/// The definition, with what there is on this machine now.
pub(crate) fn definition() -> Command {
    Arguments::definition().mut_subcommands(|command| {
        let is_attach = command.get_name() == "attach";
        let names: fn() -> Vec<CompletionCandidate> = if is_attach { free } else { attached };
        let specs: fn(&OsStr) -> Vec<CompletionCandidate> =
            if is_attach { names_and_specs } else { specs };
        command.mut_args(|argument| match argument.get_id().as_str() {
            "device" | "target" => argument.add(ArgValueCandidates::new(names)),
            "spec" => argument.add(ArgValueCompleter::new(specs)),
            _ => argument,
        })
    })
}

/// Devices in the registry, and their names. An option of the command line that is being typed is not known
/// yet.
fn attached() -> Vec<CompletionCandidate> {
    let registry = Registry::new(None);
    let devices = registry.devices().unwrap_or_default();
    let names = devices.iter().filter_map(|index| registry.name(*index));
    devices.iter().map(|index| format!("nbd{index}")).chain(names).map(Into::into).collect()
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

/// Devices of the file, which have no colon in their name, and SPECs.
fn names_and_specs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let config = Config::read(&default_file()).ok();
    let names: Vec<String> = config
        .iter()
        .flat_map(Config::names)
        .filter(|name| typed.to_str().is_some_and(|typed| name.starts_with(typed)))
        .map(str::to_owned)
        .collect();
    names.into_iter().map(CompletionCandidate::new).chain(specs(typed)).collect()
}

/// SPECs that begin like this.
fn specs(typed: &OsStr) -> Vec<CompletionCandidate> {
    typed.to_str().map(completion::specs).unwrap_or_default()
}
