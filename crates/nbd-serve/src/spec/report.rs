//! What `nbd-serve --check` tells of a SPEC, for programs that check a command line or a
//! configuration before anything is started.

use serde::Serialize;

use super::Spec;
use crate::storage::mem;

/// What is to be known of a SPEC before anything is opened.
#[derive(Debug, Serialize)]
pub(crate) struct SpecReport {
    /// Why it cannot be read, and what to write instead.
    mistake: Option<String>,
    /// Paths that begin at the working directory.
    relative_paths: Vec<String>,
    /// What the operator should know.
    warnings: Vec<String>,
}

impl SpecReport {
    pub(crate) fn of(spec: &Spec) -> Self {
        let paths = spec.clone().relative_paths().into_iter();
        let shortage = mem::shortage(memory_size(spec));
        Self {
            mistake: None,
            relative_paths: paths.map(|path| path.display().to_string()).collect(),
            warnings: shortage.map(|text| format!("{spec}: {text}")).into_iter().collect(),
        }
    }

    pub(crate) fn wrong(mistake: String) -> Self {
        Self { mistake: Some(mistake), relative_paths: Vec::new(), warnings: Vec::new() }
    }
}

/// The memory that it may come to take up, in bytes.
fn memory_size(spec: &Spec) -> u64 {
    match spec {
        Spec::Memory(memory) => memory.size,
        Spec::Cow(cow) => memory_size(&cow.base),
        Spec::Layer(layered) => memory_size(&layered.inner),
        _ => 0,
    }
}
