//! `nbd-ctl replay`: the requests of a recording again, for a program and without a device.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nbd_proto::NbdError;
use nbd_record::minimise::{Attempt, minimise};
use nbd_record::program::{ending, run};
use nbd_record::replayer::ReplayEnd;
use nbd_record::{Capture, ReplayOptions, ReplayReport};
use nix::sys::resource::{Resource, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::context::{Context, eprint, print, progress};
use crate::debug::record::{failed, open, summary};
use crate::error::Error;
use crate::inspect::render::count;

/// What a program that ends by SIGTERM returns.
const SIGTERM_STATUS: i32 = 128 + SIGTERM;
/// How long an answer may take in a run without an operator: one attempt of many.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What to replay.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) file: PathBuf,
    /// The backend; without one, the recording is only told about.
    pub(crate) program: Option<Vec<String>>,
    /// List its requests.
    pub(crate) list: bool,
    pub(crate) one_by_one: bool,
    /// Where to write the fewest requests that crash it.
    pub(crate) minimise: Option<PathBuf>,
    /// What to run before each attempt.
    pub(crate) before: Option<String>,
    /// How long an answer may take.
    pub(crate) limit: Option<Duration>,
}

/// Replays a recording, once or until it is as short as can be.
pub(crate) fn replay(context: &Context, wanted: &Replay) -> Result<(), Error> {
    let recording = open(&wanted.file)?;
    if wanted.list {
        return print(&listing(&recording));
    }
    let Some(program) = &wanted.program else {
        return print(&format!("{}\n", summary(&recording, &wanted.file)));
    };
    // Ctrl-C is for the program, or for its debugger. This ends us, and it is without lanes then.
    let always = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_shutdown(SIGTERM, SIGTERM_STATUS, always)
        .map_err(Error::Signals)?;
    match &wanted.minimise {
        None => once(&recording, program, wanted),
        Some(target) => shorten(context, &recording, program, wanted, target),
    }
}

/// All requests, one a line, with seconds since the first one.
fn listing(recording: &Capture) -> String {
    let begin = recording.requests.first().map_or(0, |request| request.time);
    let lines = recording.requests.iter().enumerate().map(|(index, request)| {
        let seconds = Duration::from_nanos(request.time.saturating_sub(begin)).as_secs_f64();
        let answer = match request.error {
            None => "not answered".to_owned(),
            Some(NbdError::SUCCESS) => "ok".to_owned(),
            Some(error) => error.to_string(),
        };
        let again = match request.backends {
            0 | 1 => String::new(),
            backends => format!(", had by {backends} backends"),
        };
        format!("[{seconds:12.6}] {}: {answer}{again}\n", recording.describe(index))
    });
    lines.collect()
}

fn once(recording: &Capture, program: &[String], wanted: &Replay) -> Result<(), Error> {
    prepare(wanted.before.as_deref())?;
    let options = ReplayOptions {
        one_by_one: wanted.one_by_one,
        answer_timeout: wanted.limit,
        ..ReplayOptions::default()
    };
    let (crash, report) = play(recording, program, &options)?;
    eprint(&report.describe(recording));
    match (crash, report.end) {
        (Some(ending), _) => Err(Error::Crashed { program: program[0].clone(), ending }),
        (None, ReplayEnd::TimedOut) => {
            Err(Error::NoAnswer { limit: wanted.limit.unwrap_or_default() })
        }
        (None, ReplayEnd::ProtocolError(_)) => Err(Error::Several(1)),
        _ if !report.differences.is_empty() => Err(Error::Several(Error::DIFFERENT)),
        _ => Ok(()),
    }
}

/// How the program crashed, if it did, and what was replayed to it.
fn play(
    recording: &Capture,
    program: &[String],
    options: &ReplayOptions,
) -> Result<(Option<String>, ReplayReport), Error> {
    let failed = |source| Error::Start { program: program[0].clone(), source };
    let outcome = run(recording, program, options).map_err(failed)?;
    interrupted(outcome.status)?;
    let crash = outcome.crash();
    let failed = |source| {
        let ending = ending(outcome.status);
        Error::NotPlayed { program: program[0].clone(), ending, source }
    };
    Ok((crash, outcome.played.map_err(failed)?))
}

fn shorten(
    context: &Context,
    recording: &Capture,
    program: &[String],
    wanted: &Replay,
    target: &Path,
) -> Result<(), Error> {
    if fs::symlink_metadata(target).is_ok() {
        let error = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(failed(target, error.into()));
    }
    // Many crashes are about to come, and one core file is as good as a hundred.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let mut attempts = 0;
    let attempt = |chosen: &[bool]| {
        attempts += 1;
        if !context.sleep(Duration::ZERO) {
            return Err(Error::Interrupted("what was found so far is kept".into()));
        }
        prepare(wanted.before.as_deref())?;
        let options = ReplayOptions {
            one_by_one: wanted.one_by_one,
            answer_timeout: Some(wanted.limit.unwrap_or(ANSWER_TIMEOUT)),
            chosen: Some(chosen.to_vec()),
            quiet: attempts > 1,
        };
        let (crash, report) = play(recording, program, &options)?;
        progress(&format!(
            "attempt {attempts}: {} sent, {}",
            count(report.count() as u32, "request"),
            crash.as_deref().unwrap_or("no crash"),
        ));
        Ok(Attempt { crash, sent: report.sent, in_flight: report.in_flight })
    };
    let found = minimise(recording.requests.len(), attempt, |chosen| {
        write(recording, chosen, target).map_err(|error| failed(target, error))
    })?;
    match found {
        Some(_) => {
            eprint(&format!("after {} attempts: {}", attempts, summary(&open(target)?, target)));
            Ok(())
        }
        None => Err(Error::NoCrash { program: program[0].clone() }),
    }
}

/// All of it or nothing.
fn write(
    recording: &Capture,
    chosen: &[bool],
    target: &Path,
) -> Result<(), nbd_record::CaptureError> {
    let mut name = target.as_os_str().to_owned();
    name.push(".new");
    let mut options = File::options();
    let file =
        options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&name)?;
    recording.excerpt(&file, chosen)?;
    Ok(fs::rename(name, target)?)
}

/// Brings the storage into the state in which the recording began.
fn prepare(command: Option<&str>) -> Result<(), Error> {
    let Some(command) = command else {
        return Ok(());
    };
    let ended = Command::new("sh").args(["-c", command]).status();
    let status = ended.map_err(|source| Error::Start { program: "sh".into(), source })?;
    interrupted(status)?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Prepare { command: command.into(), ending: ending(status) }),
    }
}

/// Ctrl-C goes to the whole group of processes: this one and the programs that it has started.
fn interrupted(status: ExitStatus) -> Result<(), Error> {
    match status.signal() {
        Some(SIGINT) => Err(Error::Interrupted("and so was the program".into())),
        _ => Ok(()),
    }
}
