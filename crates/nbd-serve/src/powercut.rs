//! `nbd-serve powercut`: what a disk may look like after the power was cut, and what a checker says
//! to that.
//!
//! | module | idea |
//! |---|---|
//! | `scene` | which moments, and what of the unflushed writes had reached the disk |
//! | `image` | the disk at such a moment |
//! | `check` | running the checker |

mod check;
mod image;
mod scene;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use thiserror::Error;

use crate::record::log::{LogError, Reader};
use check::Checker;
use image::Images;
use scene::{Plan, Points, Scene};

const AFTER_HELP: &str = "\
After a power cut a disk has everything that was flushed, and of the rest any part in any order.
For each moment the checker is run on an image without the rest, on one with all of it, and on
--subsets others, chosen by --seed. {} in its arguments is the image's path; without any {}, the
path is its last argument. It may change the image. Its exit status says whether all is well (0).

Images are in --dir only while they are checked; the numbers of those that fail are printed, and
--only makes one of them again, the same to the byte.

Example:
  cp disk.img before.img
  nbd-ctl attach record:disk.log@file:disk.img     # use it, then detach it
  nbd-serve powercut disk.log --image before.img -- e2fsck -fy {}
  nbd-serve powercut disk.log --image before.img --only 17.3 --keep broken.img

Exit status: 0 the checker found nothing wrong, 1 it did or something failed, 2 wrong usage,
130 interrupted.";

/// Runs a checker on the disk as it may be after a power cut, at any moment of a recording.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// What record:LOG@SPEC has written.
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// The disk when the recording began [default: zeroes].
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Which moments: all, flushes (before and after each), or a number of random ones.
    #[arg(long, value_name = "WHICH", default_value = "flushes")]
    points: Points,
    /// Random choices of unflushed writes at each moment.
    #[arg(long, value_name = "N", default_value_t = 2)]
    subsets: u32,
    /// Of each unflushed write, choose sectors of 512 bytes instead of all or nothing.
    #[arg(long)]
    torn: bool,
    /// Makes the random choices others.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Only this moment and choice, like 17.3.
    #[arg(long, value_name = "POINT.CHOICE")]
    only: Option<Scene>,
    /// Leave the image here that --only makes.
    #[arg(long, value_name = "FILE", requires = "only")]
    keep: Option<PathBuf>,
    /// Where images are made [default: beside the log].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// The checker and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Why nothing was found out.
#[derive(Debug, Error)]
pub(crate) enum PowercutError {
    #[error(
        "there is nothing to run: add a checker, like `-- e2fsck -fn {{}}`, or --only with --keep"
    )]
    NoCommand,
    #[error("there is no moment {scene}: the log has {entries} entries")]
    NoScene { scene: Scene, entries: usize },
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
    #[error("interrupted after {0} images; what was found until then is above")]
    Interrupted(usize),
    #[error("the checker fails on {failed} of {checked} images")]
    Fails { failed: usize, checked: usize },
}

impl PowercutError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NoCommand | Self::NoScene { .. } => 2,
            Self::Interrupted(_) => 130,
            _ => 1,
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct Report {
    entries: usize,
    checked: usize,
    failed: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Failure {
    /// For `--only`.
    scene: String,
    status: String,
    output: String,
}

/// All of the command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), PowercutError> {
    let in_file = |path: &Path, source| PowercutError::File { path: path.into(), source };
    let path = &arguments.log;
    let log = File::open(path).map_err(|source| in_file(path, source))?;
    let log =
        Reader::open(log).map_err(|source| PowercutError::Log { path: path.clone(), source })?;
    if arguments.command.is_empty() && arguments.keep.is_none() {
        return Err(PowercutError::NoCommand);
    }
    let plan = Plan { subsets: arguments.subsets, torn: arguments.torn, seed: arguments.seed };
    let scenes = match arguments.only {
        Some(scene) if scene.point <= log.entries.len() => vec![scene],
        Some(scene) => {
            return Err(PowercutError::NoScene { scene, entries: log.entries.len() });
        }
        None => plan.scenes(&log.entries, arguments.points),
    };
    let directory = match &arguments.dir {
        Some(directory) => directory.clone(),
        None => path.parent().map(Into::into).unwrap_or_default(),
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&interrupted)).map_err(PowercutError::Signals)?;
    }
    let mut images = Images::new(&log, &plan, arguments.image.as_deref(), &directory)?;
    let checker = (!arguments.command.is_empty()).then(|| Checker::new(&arguments.command));
    let mut report = Report { entries: log.entries.len(), ..Report::default() };
    for (number, scene) in scenes.iter().enumerate() {
        progress(number, scenes.len(), report.failed.len());
        let image = images.make(*scene)?;
        if let Some(keep) = &arguments.keep {
            fs::copy(&image, keep).map_err(|source| in_file(keep, source))?;
        }
        let Some(checker) = &checker else {
            continue;
        };
        let (status, output) = checker.run(&image, *scene)?;
        // The checker got the signal as well, so what it says does not count.
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        report.checked += 1;
        if !status.success() {
            let (scene, status) = (scene.to_string(), status.to_string());
            report.failed.push(Failure { scene, status, output });
        }
    }
    print(&report, arguments.json).map_err(PowercutError::Output)?;
    if interrupted.load(Ordering::Relaxed) {
        return Err(PowercutError::Interrupted(report.checked));
    }
    match report.failed.len() {
        0 => Ok(()),
        failed => Err(PowercutError::Fails { failed, checked: report.checked }),
    }
}

/// Where somebody watches.
fn progress(done: usize, all: usize, failed: usize) {
    if io::stderr().is_terminal() {
        eprint!("{done} of {all} images checked, {failed} failed\r");
    }
}

fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut write = || -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut out, report)?;
            return writeln!(out);
        }
        for failure in &report.failed {
            writeln!(out, "{}: {}", failure.scene, failure.status)?;
            for line in failure.output.lines() {
                writeln!(out, "    {line}")?;
            }
        }
        let (checked, failed) = (report.checked, report.failed.len());
        writeln!(out, "{} entries, {checked} images checked, {failed} failed", report.entries)
    };
    match write().and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
