//! Programs that tests run: none without a time limit, and none left behind.
//!
//! Their output goes to files and not to pipes, so that a daemon which does not let go of it
//! cannot hang a test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::temp::fresh_path;
use crate::wait::scaled_timeout;

/// How long a program may take if nothing else is said.
pub const PROGRAM_TIMEOUT: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long a killed program may take to go. One that sits in the driver may not go at all.
const REAP_TIMEOUT: Duration = Duration::from_secs(2);

/// What a program left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line.
    pub command: String,
    /// Exit status, or 128 and the number of the signal as in shells.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Panics unless it succeeded.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.fails_with(0)
    }

    /// Panics unless it ended with this status.
    #[track_caller]
    pub fn fails_with(self, code: i32) -> Self {
        assert!(
            self.code == code,
            "{}: status {} and not {code}\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Panics unless standard error has all these words.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "{}: says nothing of \"{word}\":\n{}",
                self.command,
                self.stderr
            );
        }
        self
    }
}

/// A program that runs, in a process group of its own.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: File,
    stderr: File,
    started: Instant,
    status: Option<ExitStatus>,
}

/// Runs a program to its end.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Output {
    start(program, arguments).finish(PROGRAM_TIMEOUT)
}

/// Starts a program.
#[track_caller]
pub fn start<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Running {
    let mut command = Command::new(program);
    command.args(arguments);
    launch(command)
}

/// Starts a command.
#[track_caller]
pub fn launch(mut command: Command) -> Running {
    command.stdin(Stdio::null());
    spawn(command)
}

/// Starts a command, and hands out what it reads from.
#[track_caller]
pub fn converse(mut command: Command) -> (Running, ChildStdin) {
    command.stdin(Stdio::piped());
    let mut running = spawn(command);
    let stdin = running.child.stdin.take().expect("a pipe");
    (running, stdin)
}

#[track_caller]
fn spawn(mut command: Command) -> Running {
    let (stdout, stderr) = (unnamed_file(), unnamed_file());
    let copy = |file: &File| Stdio::from(file.try_clone().expect("a descriptor"));
    command.stdout(copy(&stdout)).stderr(copy(&stderr)).process_group(0);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let text: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let text = text.join(" ");
    let started = Instant::now();
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{text}: there is no such program: run scripts/setup, or build it")
        }
        Err(error) => panic!("{text}: {error}"),
    };
    Running { command: text, child, stdout, stderr, started, status: None }
}

fn unnamed_file() -> File {
    let path = fresh_path();
    let mut options = File::options();
    let file = options.read(true).append(true).create_new(true).open(&path);
    let file = file.expect("a temporary file");
    fs::remove_file(path).expect("a temporary file to remove");
    file
}

/// By place, as the program that writes shares the file's offset.
fn all_of(file: &File) -> String {
    let mut bytes = vec![0; file.metadata().map_or(0, |meta| meta.len()) as usize];
    file.read_exact_at(&mut bytes, 0).expect("a file to read");
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Running {
    /// Its process, which is also its group.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child to wait for");
        }
        self.status.is_none()
    }

    /// Sends a signal to it and its descendants.
    pub fn signal(&self, signal: Signal) {
        // It may be gone.
        let _ = killpg(Pid::from_raw(self.pid()), signal);
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn output(&self) -> String {
        all_of(&self.stdout)
    }

    /// What it has said on standard error so far.
    #[must_use]
    pub fn words(&self) -> String {
        all_of(&self.stderr)
    }

    /// Waits for its end; panics after `limit`, on a slow machine [`scaled_timeout`].
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Output {
        let limit = scaled_timeout(limit);
        let deadline = Instant::now() + limit;
        while self.is_running() {
            assert!(
                Instant::now() < deadline,
                "{}: still running after {} s\n{}{}",
                self.command,
                limit.as_secs(),
                all_of(&self.stdout),
                self.words()
            );
            std::thread::sleep(POLL_INTERVAL);
        }
        let took = self.started.elapsed();
        let status = self.status.unwrap_or_default();
        let code = status.code();
        Output {
            command: self.command.clone(),
            code: code.unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: all_of(&self.stdout),
            stderr: self.words(),
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        self.signal(Signal::SIGKILL);
        let deadline = Instant::now() + scaled_timeout(REAP_TIMEOUT);
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}
