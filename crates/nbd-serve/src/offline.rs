//! The commands that serve nothing: `commit`, `discard`, `powercut`.
//!
//! They know the formats of our files and take the locks of those who serve them; that is why they
//! are here and not in nbd-ctl, which never touches storage.

pub(crate) mod commit;
mod powercut;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nbd_backend::chain;
use thiserror::Error;

use nbd_log::Output;

use crate::PROGRAM;
use crate::export::error::ExportError;
use crate::size::Size;
use crate::spec::{CowSpec, Spec, SpecError};
use powercut::PowercutError;

/// Works on files that are not being served.
#[derive(Debug, Parser)]
#[command(name = "nbd-serve", version, disable_help_subcommand = true)]
struct Offline {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Write the changes of a `cow:` export to its base, and empty the diff.
    #[command(after_help = "\
Refuses while base or diff is being served. If it is interrupted, run it again.

Example:
  nbd-serve commit cow:base.img+changes.cow")]
    Commit {
        /// Like cow:base.img+changes.cow.
        #[arg(value_name = "SPEC")]
        spec: OsString,
    },
    /// Discard the changes of a `cow:` export.
    #[command(after_help = "\
Refuses while the diff is being served.

Example:
  nbd-serve discard cow:base.img+changes.cow")]
    Discard {
        /// Like cow:base.img+changes.cow.
        #[arg(value_name = "SPEC")]
        spec: OsString,
    },
    Powercut(powercut::Arguments),
}

#[derive(Debug, Error)]
enum Error {
    #[error("{text}")]
    Spec { text: String, source: SpecError },
    #[error("{0}: is not a cow: export, and only those have changes to commit or discard")]
    NotCow(String),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Powercut(#[from] PowercutError),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Spec { .. } | Self::NotCow(_) => 2,
            Self::Powercut(error) => error.exit_code(),
            Self::Export(_) => 1,
        }
    }
}

/// Runs the tool that the arguments name, if they do.
pub(crate) fn main(arguments: &[OsString]) -> Option<ExitCode> {
    let name = arguments.get(1)?.to_str()?;
    if !["commit", "discard", "powercut"].contains(&name) {
        return None;
    }
    nbd_log::init(PROGRAM, None, Output::JournalOrStderr);
    let tool = match Offline::try_parse_from(arguments) {
        Ok(Offline { tool }) => tool,
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            tracing::error!("{}", text.trim_end());
            return Some(ExitCode::from(2));
        }
        Err(error) => {
            let _ = error.print();
            return Some(ExitCode::SUCCESS);
        }
    };
    Some(match run(tool) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    })
}

fn run(tool: Tool) -> Result<(), Error> {
    match tool {
        Tool::Commit { spec } => {
            let spec = cow(&spec)?;
            let diff = spec.diff.display().to_string();
            let copied = commit::commit(spec)?;
            tracing::info!("{diff}: {} committed; it is empty now", Size(copied));
        }
        Tool::Discard { spec } => {
            let spec = cow(&spec)?;
            commit::discard(&spec.diff)?;
            tracing::info!("{}: discarded; it is empty now", spec.diff.display());
        }
        Tool::Powercut(arguments) => powercut::run(&arguments)?,
    }
    Ok(())
}

fn cow(text: &OsString) -> Result<CowSpec, Error> {
    let written = || text.to_string_lossy().into_owned();
    match Spec::parse(text).map_err(|source| Error::Spec { text: written(), source })? {
        Spec::Cow(cow) => Ok(*cow),
        _ => Err(Error::NotCow(written())),
    }
}
