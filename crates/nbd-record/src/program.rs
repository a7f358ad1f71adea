//! Runs a program in a process of its own and replays a capture to it, so that its crash is seen from
//! outside.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nbd_control::backend::HOLDER_FD;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::capture::Capture;
use crate::fake_holder::{FakeHolder, FakeHolderError};
use crate::replayer::{ReplayEnd, ReplayOptions, ReplayReport, replay};

/// How often to check whether a program with a time limit has ended.
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How a program's run went.
#[derive(Debug)]
pub struct Outcome {
    /// How the replay went, or why there was none.
    pub played: Result<ReplayReport, FakeHolderError>,
    /// How the program's process ended.
    pub status: ExitStatus,
}

impl Outcome {
    /// How the program ended if it crashed, in words. A crash is any end before the disconnect and any
    /// unsuccessful exit.
    pub fn crash(&self) -> Option<String> {
        let report = self.played.as_ref().ok()?;
        let early = report.end == ReplayEnd::LaneClosed || !self.status.success();
        (early && report.end != ReplayEnd::TimedOut).then(|| ending(self.status))
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

/// Starts a program as a holder does, and replays a capture to it.
///
/// # Errors
///
/// If the program cannot be started or waited for. What goes wrong after that is in the outcome.
pub fn run(capture: &Capture, program: &[String], options: &ReplayOptions) -> io::Result<Outcome> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = start(program, theirs.into(), options.quiet)?;
    let played = serve(ours, capture, options);
    let must_kill = match &played {
        Ok(report) => matches!(report.end, ReplayEnd::TimedOut | ReplayEnd::ProtocolError(_)),
        Err(_) => options.answer_timeout.is_some(),
    };
    if must_kill {
        // It may have ended meanwhile; the wait below tells.
        let _ = child.kill();
    }
    let status = wait(&mut child, options.answer_timeout)?;
    Ok(Outcome { played, status })
}

/// Replays a capture to the program at the other end of `stream`.
///
/// # Errors
///
/// Those of [`FakeHolder`]; [`FakeHolderError::Failed`] if the program's export has another size or
/// block size than the captured device.
pub fn serve(
    stream: UnixStream,
    capture: &Capture,
    options: &ReplayOptions,
) -> Result<ReplayReport, FakeHolderError> {
    let mut holder = FakeHolder::accept(stream, options.answer_timeout)?;
    let (found, recorded) = (holder.hello.export, capture.header.export);
    if (found.size, found.block_size) != (recorded.size, recorded.block_size) {
        let text = format!(
            "it has {} bytes in blocks of {}, and the device that was recorded {} in blocks of {}: \
             give it a copy of that device's storage",
            found.size, found.block_size, recorded.size, recorded.block_size
        );
        holder.refuse(&text);
        return Err(FakeHolderError::Failed(text));
    }
    let lanes = holder.grant(capture.header.lanes, None)?;
    Ok(replay(capture, &lanes, options))
}

/// Starts a program with its holder's descriptor in the environment, as a holder does, and on this
/// process's terminal.
///
/// # Errors
///
/// If `program` is empty or cannot be started.
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

/// Waits for the program's end, and kills it after `answer_timeout`.
fn wait(child: &mut Child, answer_timeout: Option<Duration>) -> io::Result<ExitStatus> {
    let Some(answer_timeout) = answer_timeout else {
        return child.wait();
    };
    let deadline = Instant::now() + answer_timeout;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(EXIT_POLL_INTERVAL);
    }
    child.kill()?;
    child.wait()
}
