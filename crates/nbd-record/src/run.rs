//! A program that is played for in a process of its own, so that its crash is seen from outside.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nbd_control::backend::HOLDER_FD;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::play::{End, Options, Report, play};
use crate::recording::Recording;
use crate::stage::{Stage, StageError};

/// How often to look whether a program that was given a time has ended.
const TICK: Duration = Duration::from_millis(5);

/// What came of a program.
#[derive(Debug)]
pub struct Outcome {
    /// What was played for it, or why nothing was.
    pub played: Result<Report, StageError>,
    /// How its process ended.
    pub status: ExitStatus,
}

impl Outcome {
    /// How the program ended before it was told to, in words: that is what a crash is here.
    pub fn crash(&self) -> Option<String> {
        let report = self.played.as_ref().ok()?;
        let early = report.end == End::Gone || !self.status.success();
        (early && report.end != End::Stuck).then(|| ending(self.status))
    }
}

/// How a process ended, in words.
#[must_use]
pub fn ending(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = nix::sys::signal::Signal::try_from(signal);
            name.map_or(format!("killed by signal {signal}"), |name| format!("killed by {name}"))
        }
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => "ended".into(),
    }
}

/// Starts a program as a holder does, and plays a recording for it.
pub fn run(recording: &Recording, program: &[String], options: &Options) -> io::Result<Outcome> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = start(program, theirs.into(), options.quiet)?;
    let played = serve(ours, recording, options);
    let is_hopeless = match &played {
        Ok(report) => matches!(report.end, End::Stuck | End::Nonsense(_)),
        Err(_) => options.patience.is_some(),
    };
    if is_hopeless {
        let _ = child.kill();
    }
    let status = wait(&mut child, options.patience)?;
    Ok(Outcome { played, status })
}

/// Plays for a program at the other end of `stream`.
pub fn serve(
    stream: UnixStream,
    recording: &Recording,
    options: &Options,
) -> Result<Report, StageError> {
    let mut stage = Stage::meet(stream, options.patience)?;
    let (found, recorded) = (stage.hello.export, recording.header.export);
    if (found.size, found.block_size) != (recorded.size, recorded.block_size) {
        let text = format!(
            "it has {} bytes in blocks of {}, and the device that was recorded {} in blocks of {}: \
             give it a copy of that device's storage",
            found.size, found.block_size, recorded.size, recorded.block_size
        );
        stage.refuse(&text);
        return Err(StageError::Failed(text));
    }
    let lanes = stage.grant(recording.header.lanes, None)?;
    Ok(play(recording, &lanes, options))
}

/// Starts a program that finds its holder as one that a holder starts, and has our terminal.
#[expect(clippy::needless_pass_by_value, reason = "the program shall be the only one to have it")]
pub fn start(program: &[String], holder: OwnedFd, quiet: bool) -> io::Result<Child> {
    let (name, arguments) = program.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    fcntl(holder.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut command = Command::new(name);
    command.args(arguments).env(HOLDER_FD, holder.as_raw_fd().to_string());
    if quiet {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    command.spawn()
}

/// Waits for the program's end, and kills it when that takes too long.
fn wait(child: &mut Child, patience: Option<Duration>) -> io::Result<ExitStatus> {
    let Some(patience) = patience else {
        return child.wait();
    };
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(TICK);
    }
    child.kill()?;
    child.wait()
}
