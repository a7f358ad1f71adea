//! An attached device that is gone at the end of its test, whatever happens.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::panicking;
use std::time::Duration;

use nbd_control::process::ProcessId;
use nbd_control::registry::{Registry, State};
use nbd_control::status::{BackendState, Status};
use nix::sys::signal::Signal;

use crate::Api;
use crate::command::{Output, Running, start};
use crate::ctl::{ctl, program};
use crate::disk::start_write;
use crate::process;
use crate::sysfs::block_attribute;
use crate::temp::TempDir;
use crate::wait::{EVENT_TIMEOUT, wait_for, wait_until};

/// So many lines of a device's log go with the report of a failed test.
const LOG_TAIL: usize = 30;
/// The exit status of nbd-ctl for what took too long.
const TIMED_OUT: i32 = 5;

/// Requests of a device that the block layer saw completed.
#[must_use]
pub fn completed(name: &str) -> u64 {
    let text = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap_or_default();
    let field = |n| text.split_ascii_whitespace().nth(n).and_then(|word| word.parse::<u64>().ok());
    // Reads and writes.
    field(0).unwrap_or(0) + field(4).unwrap_or(0)
}

/// A device that a test has attached.
#[derive(Debug)]
pub struct Device {
    index: u32,
    gone: bool,
}

impl Device {
    /// Attaches; the arguments are those of `nbd-ctl attach`.
    #[track_caller]
    pub fn attach<S: AsRef<OsStr>>(api: Api, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut all = vec!["attach".into(), "--kernel-api".into(), api.name().into()];
        all.extend(arguments.into_iter().map(|word| word.as_ref().to_owned()));
        Self::printed_by(&ctl(all).succeeds())
    }

    /// The device whose path an `nbd-ctl attach` has printed.
    #[track_caller]
    #[must_use]
    pub fn printed_by(output: &Output) -> Self {
        let index = output
            .stdout
            .strip_prefix("/dev/nbd")
            .and_then(|rest| rest.strip_suffix('\n'))
            .and_then(|number| number.parse().ok());
        let Some(index) = index else {
            panic!("{}: printed {:?}", output.command, output.stdout);
        };
        Self::numbered(index)
    }

    /// A device that is attached, or about to be.
    #[must_use]
    pub fn numbered(index: u32) -> Self {
        Self { index, gone: false }
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Like `nbd0`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("nbd{}", self.index)
    }

    /// Like `/dev/nbd0`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/nbd{}", self.index))
    }

    /// What `nbd-ctl status --json` tells.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> Status {
        self.status_and_words().0
    }

    /// The same, and what it has to say besides.
    #[track_caller]
    #[must_use]
    pub fn status_and_words(&self) -> (Status, Output) {
        // Status gives a holder 5 s to answer, and nothing that it waits for can be stuck; but a
        // machine may let it wait for so long.
        let output = wait_for("a status", EVENT_TIMEOUT, || {
            let output = ctl(["status", &self.name(), "--json"]);
            (output.code != TIMED_OUT).then_some(output)
        });
        let output = output.succeeds();
        let status = serde_json::from_str(&output.stdout);
        (status.expect("a status in JSON"), output)
    }

    /// Waits until a backend serves it.
    #[track_caller]
    pub fn wait_running(&self) -> Status {
        wait_for("a running backend", EVENT_TIMEOUT, || {
            let status = self.status();
            (status.backend.state == BackendState::Running).then_some(status)
        })
    }

    /// What its holder has written down for its successor.
    #[track_caller]
    #[must_use]
    pub fn state(&self) -> Option<State> {
        match Registry::new(None).read_state(self.index) {
            Ok(state) => state,
            Err(error) => panic!("{}: the state of its holder: {error}", self.name()),
        }
    }

    /// The process that has the lanes.
    #[track_caller]
    #[must_use]
    pub fn backend(&self) -> i32 {
        let state = self.state().expect("an attached device");
        state.backend.expect("a backend").pid
    }

    /// Sends a signal to the process that has the lanes.
    #[track_caller]
    pub fn signal_backend(&self, signal: Signal) {
        assert!(process::signal(self.backend(), signal), "no such backend");
    }

    /// Requests that the block layer saw completed.
    #[must_use]
    pub fn completed(&self) -> u64 {
        completed(&self.name())
    }

    /// Waits until the block layer has seen more requests completed than now.
    #[track_caller]
    pub fn wait_progress(&self) {
        let before = self.completed();
        wait_until("progress of I/O", EVENT_TIMEOUT, || self.completed() > before + 20);
    }

    /// Starts a direct write of one byte all over the first block, and waits until the holder has it.
    #[track_caller]
    #[must_use]
    pub fn start_block(&self, files: &TempDir, byte: u8) -> Running {
        let input = files.join(&format!("block-{byte}"));
        let running = start_write(&self.path(), 0, &input, &[byte; 4096]);
        wait_until("the write waits", EVENT_TIMEOUT, || {
            self.status().in_flight.iter().any(|it| it.command == "write")
        });
        running
    }

    /// `queue/io_timeout` in milliseconds.
    #[track_caller]
    #[must_use]
    pub fn io_timeout(&self) -> u64 {
        block_attribute(&self.name(), "queue/io_timeout").expect("io_timeout")
    }

    /// What holder and backends have written to the log.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(Registry::new(None).log(self.index)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Detaches; panics unless that succeeds and leaves nothing.
    #[track_caller]
    pub fn detach(self) -> Output {
        self.end(&[], None)
    }

    /// The same for a backend that must live on, because it serves other devices.
    #[track_caller]
    pub fn detach_from(self, backend: i32) -> Output {
        self.end(&[], Some(backend))
    }

    /// The same, by force.
    #[track_caller]
    pub fn detach_by_force(self) -> Output {
        self.end(&["--force"], None)
    }

    #[track_caller]
    fn end(mut self, options: &[&str], stays: Option<i32>) -> Output {
        let mut processes = self.processes();
        processes.retain(|process| Some(process.pid) != stays);
        assert!(!processes.is_empty(), "{} has no processes", self.name());
        let name = self.name();
        let arguments = ["detach", &name].into_iter();
        let output = ctl(arguments.chain(options.iter().copied())).succeeds();
        self.has_left_nothing(&processes);
        self.gone = true;
        output
    }

    /// Holder, sitter, backend and what else the holder has started, as far as they live.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessId> {
        // On the way out of a failed test another panic would be one too many.
        let state = Registry::new(None).read_state(self.index).ok().flatten();
        let Some(state) = state else {
            return Vec::new();
        };
        let all = [Some(state.holder), Some(state.sitter), state.backend];
        let children = process::children(state.holder.pid).into_iter().filter_map(ProcessId::of);
        all.into_iter().flatten().chain(children).filter(ProcessId::is_alive).collect()
    }

    /// Panics unless nothing of the device is left, nor of these processes.
    #[track_caller]
    pub fn has_left_nothing(&self, processes: &[ProcessId]) {
        let (name, registry) = (self.name(), Registry::new(None));
        assert!(!registry.folder(self.index).exists(), "its folder is left");
        assert!(!registry.join_socket(self.index).exists(), "a socket is left");
        // The driver clears a device when the last of its users has closed it.
        wait_until("it is clear", EVENT_TIMEOUT, || {
            block_attribute(&name, "size").unwrap_or(0) == 0
                && block_attribute(&name, "pid").is_none()
        });
        wait_until("its processes are gone", EVENT_TIMEOUT, || {
            !processes.iter().any(ProcessId::is_alive)
        });
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        if panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
            eprintln!("the end of the log of {}:\n{tail}", self.name());
        }
        let processes = self.processes();
        let arguments = ["detach", "--force", &self.name()];
        let mut running = start(program("nbd-ctl"), arguments);
        for _ in 0..300 {
            if !running.is_running() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(running);
        self.remove_by_hand(&processes);
    }
}

impl Device {
    /// If the programs under test cannot do it, the next test shall not suffer.
    fn remove_by_hand(&self, processes: &[ProcessId]) {
        for id in processes.iter().filter(|id| id.is_alive()) {
            process::signal(id.pid, Signal::SIGKILL);
        }
        if block_attribute(&self.name(), "pid").is_some() {
            let _ = Command::new("nbd-client").arg("-d").arg(self.path()).status();
        }
        let _ = Registry::new(None).remove(self.index);
    }
}
