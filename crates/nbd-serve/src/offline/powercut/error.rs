//! Why no image was made or checked.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::crash_images::CrashImage;
use crate::layers::write_log::LogError;

/// Why nothing was found out.
#[derive(Debug, Error)]
pub(crate) enum PowercutError {
    #[error(
        "there is nothing to run: add a checker, like `-- e2fsck -fn {{}}`, or --only with --keep"
    )]
    NoCommand,
    #[error("there is no moment {crash_image}: the log has {entries} entries")]
    NoCrashImage { crash_image: CrashImage, entries: usize },
    #[error("{}", .path.display())]
    Log { path: PathBuf, source: LogError },
    #[error("{}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: has {found} bytes, and the recorded device {size}", .path.display())]
    OtherSize { path: PathBuf, found: u64, size: u64 },
    #[error("cannot run {}", .program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("standard output")]
    Output(#[source] io::Error),
    #[error("interrupted after {0} images; the failures found are above")]
    Interrupted(usize),
    #[error("the checker fails on {failed} of {checked} images")]
    Fails { failed: usize, checked: usize },
}

impl PowercutError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NoCommand | Self::NoCrashImage { .. } => 2,
            Self::Interrupted(_) => 130,
            _ => 1,
        }
    }
}
