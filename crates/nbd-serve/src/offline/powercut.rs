//! `nbd-serve powercut`: what a disk may look like after the power was cut, and what a checker says
//! to that.
//!
//! | module | idea |
//! |---|---|
//! | `crash_images` | which moments, and what of the unflushed writes had reached the disk |
//! | `image` | the disk at such a moment |
//! | `check` | running the checker |

mod check;
mod crash_images;
mod error;
mod image;
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

use crate::layers::write_log::Reader;
use check::Checker;
use crash_images::{CrashImage, Plan, Points};
pub(crate) use error::PowercutError;
use image::Images;

const AFTER_HELP: &str = "\
After a power cut a disk has everything that was flushed, and any part of the unflushed writes, in any
order. For each moment the checker runs on an image without the unflushed writes, on one with all of
them, and on --subsets others, chosen by --seed. {} in its arguments stands for the image's path; without
{}, the path is its last argument. The checker may change the image. Exit status 0 of the checker means
that the image is good.

Images exist in --dir only while they are checked. The numbers of bad images are printed; --only makes one
of them again, with the same bytes.

Example:
  cp disk.img before.img
  nbd-ctl attach record:disk.log@file:disk.img     # use it, then detach it
  nbd-serve powercut disk.log --image before.img -- e2fsck -fy {}
  nbd-serve powercut disk.log --image before.img --only 17.3 --keep broken.img

Exit status: 0 the checker found nothing wrong, 1 it did or something failed, 2 wrong usage,
130 interrupted.";

/// Runs a checker on images of the disk as a power cut may leave it, at moments of a write log.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The file that record:LOG@SPEC has written.
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// Image of the disk at the beginning of the log [default: zeroes].
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Which moments: all, flushes (before and after each), or a number of random ones.
    #[arg(long, value_name = "WHICH", default_value = "flushes")]
    points: Points,
    /// Number of random parts of the unflushed writes at each moment.
    #[arg(long, value_name = "N", default_value_t = 2)]
    subsets: u32,
    /// Tear unflushed writes between sectors of 512 bytes, instead of taking them whole.
    #[arg(long)]
    torn: bool,
    /// Start of the random numbers; another seed chooses other parts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Only this moment and choice, like 17.3.
    #[arg(long, value_name = "POINT.CHOICE")]
    only: Option<CrashImage>,
    /// Keep the image that --only makes in this file.
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

#[derive(Debug, Default, Serialize)]
struct Report {
    entries: usize,
    checked: usize,
    failed: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Failure {
    /// For `--only`.
    #[serde(rename = "scene")]
    crash_image: String,
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
    let crash_images = match arguments.only {
        Some(crash_image) if crash_image.point <= log.entries.len() => vec![crash_image],
        Some(crash_image) => {
            return Err(PowercutError::NoCrashImage { crash_image, entries: log.entries.len() });
        }
        None => plan.crash_images(&log.entries, arguments.points),
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
    for (number, crash_image) in crash_images.iter().enumerate() {
        progress(number, crash_images.len(), report.failed.len());
        let image = images.make(*crash_image)?;
        if let Some(keep) = &arguments.keep {
            fs::copy(&image, keep).map_err(|source| in_file(keep, source))?;
        }
        let Some(checker) = &checker else {
            continue;
        };
        let (status, output) = checker.run(&image, *crash_image)?;
        // The checker got the signal as well, so what it says does not count.
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        report.checked += 1;
        if !status.success() {
            let (crash_image, status) = (crash_image.to_string(), status.to_string());
            report.failed.push(Failure { crash_image, status, output });
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
            writeln!(out, "{}: {}", failure.crash_image, failure.status)?;
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
