//! What a shell may complete a command line with: devices, SPECs, files.

use std::ffi::OsStr;
use std::fs;

use clap::Command;
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use nbd_control::registry::Registry;

use crate::cli::Arguments;
use crate::config::{Config, default_file};

/// How a SPEC may begin, in the order in which a newcomer needs them, and what it is then.
const BEGINNINGS: [(&str, &str); 19] = [
    ("file:", "a file or a block device"),
    ("mem:", "memory"),
    ("nbd://", "another NBD server"),
    ("nbds://", "the same with TLS"),
    ("nbd+unix:///", "an NBD server on a unix socket"),
    ("nbd+vsock://", "an NBD server by vsock"),
    ("exec:", "an NBD server that is started here"),
    ("exec+listen:", "one that is given a listening socket"),
    ("cow:", "changes beside a base that is only read"),
    ("null:", "zeroes"),
    ("pattern:", "every eight bytes are their offset"),
    ("partition:", "layer: one partition of a SPEC"),
    ("offset:", "layer: a part of a SPEC"),
    ("readonly@", "layer: refuses writes"),
    ("delay:", "layer: takes time"),
    ("error:", "layer: fails some commands"),
    ("rate:", "layer: so many bytes a second"),
    ("log@", "layer: a line about each command"),
    ("record:", "layer: writes down all changes"),
];

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
    let Some(typed) = typed.to_str() else { return Vec::new() };
    // Layers stand in front of what they are about.
    let (layers, last) = typed.split_at(typed.rfind('@').map_or(0, |at| at + 1));
    if let Some(place) = path_begins(last) {
        let (head, path) = typed.split_at(layers.len() + place);
        return paths(head, path);
    }
    let beginnings = BEGINNINGS.iter().filter(|(word, _)| word.starts_with(last));
    let found = beginnings.map(|(word, about)| {
        CompletionCandidate::new(format!("{layers}{word}")).help(Some((*about).into()))
    });
    let mut found: Vec<_> = found.collect();
    // A file whose name has been begun without `file:` before it.
    if found.is_empty() && !last.is_empty() && !last.contains(':') {
        found = paths(&format!("{layers}file:"), last);
    }
    found
}

/// Where the path begins in a SPEC that has one.
fn path_begins(spec: &str) -> Option<usize> {
    if spec.starts_with("cow:") {
        return Some(spec.rfind('+').unwrap_or("cow".len()) + 1);
    }
    spec.starts_with("file:").then_some("file:".len())
}

fn paths(head: &str, path: &str) -> Vec<CompletionCandidate> {
    let found = PathCompleter::any().complete(OsStr::new(path));
    found.into_iter().map(|candidate| candidate.add_prefix(head)).collect()
}
