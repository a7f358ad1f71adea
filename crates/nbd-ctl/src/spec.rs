//! What nbd-serve makes of a SPEC, asked before anything is started.

use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::Error;
use crate::program;

/// What nbd-serve tells of a SPEC.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct SpecReport {
    /// Why it cannot be read, and what to write instead.
    pub(crate) mistake: Option<String>,
    /// Paths that begin at the working directory.
    pub(crate) relative_paths: Vec<String>,
    /// What the operator should know.
    pub(crate) warnings: Vec<String>,
}

/// Asks nbd-serve. One of another release may not know the question: it tells its mistakes later.
pub(crate) fn report(spec: &str) -> Result<SpecReport, Error> {
    let program = program::nbd_serve()?;
    let mut command = Command::new(&program);
    command.args(["--check", "--", spec]).stdin(Stdio::null());
    let output = command.output().map_err(|source| Error::Start { program, source })?;
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}
