//! What a shell may complete a SPEC with. The programs know how SPECs begin; nbd-serve alone knows what they mean.

use std::ffi::OsStr;

use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};

/// How a SPEC may begin, in the order of use, and what it is then.
const BEGINNINGS: [(&str, &str); 21] = [
    ("file:", "a file or a block device"),
    ("mem:", "memory"),
    ("nbd://", "another NBD server"),
    ("nbds://", "another NBD server, with TLS"),
    ("nbd+unix:///", "an NBD server on a unix socket"),
    ("nbd+vsock://", "an NBD server on a vsock"),
    ("exec:", "an NBD server, started as a program"),
    ("exec+listen:", "an NBD server that gets a listening socket"),
    ("cow:", "changes beside a base that is only read"),
    ("nbdkit:", "a plugin of nbdkit"),
    ("rbd:", "an image of a Ceph cluster"),
    ("null:", "zeroes; drops writes"),
    ("pattern:", "every eight bytes are their offset"),
    ("partition:", "layer: one partition of a SPEC"),
    ("offset:", "layer: a part of a SPEC"),
    ("readonly@", "layer: refuses writes"),
    ("delay:", "layer: delays commands"),
    ("error:", "layer: fails a share of commands"),
    ("rate:", "layer: limits bytes a second"),
    ("log@", "layer: logs each command"),
    ("record:", "layer: logs all writes, for power cuts"),
];

/// SPECs that begin like this: how they go on, or the files that they may name.
#[must_use]
pub fn specs(typed: &str) -> Vec<CompletionCandidate> {
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
