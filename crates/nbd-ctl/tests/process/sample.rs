//! Peers, processes and values to test with.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nbd_control::Channel;
use nbd_control::backend::ExportInfo;
use nbd_control::control::{Request, Response};
use nbd_control::process::ProcessId;
use nbd_control::status::{BackendState, BackendStatus, Status, TotalsStatus};

/// Longer than anything that a test waits for.
pub(crate) const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

/// Serves one connection with one request; who only looks whether somebody listens does not count.
pub(crate) fn answer_one(listener: &UnixListener, responses: &[Response]) -> Request {
    loop {
        let (stream, _) = listener.accept().unwrap();
        let Ok(mut channel) = Channel::new(stream) else {
            continue;
        };
        let Ok(received) = channel.receive_within::<Request>(EVENT_TIMEOUT) else {
            continue;
        };
        for response in responses {
            channel.send(response, &[]).unwrap();
        }
        return received.message;
    }
}

/// Waits until the peer hangs up.
pub(crate) fn drain(stream: &UnixStream) {
    let _ = std::io::copy(&mut &*stream, &mut std::io::sink());
}

/// A process that does nothing, and is gone with the test.
pub(crate) struct Sleeper(Child);

impl Sleeper {
    pub(crate) fn new(directory: &Path) -> Self {
        let mut command = Command::new("sleep");
        Self(command.arg("600").current_dir(directory).spawn().unwrap())
    }

    pub(crate) fn id(&self) -> ProcessId {
        ProcessId::of(self.0.id() as i32).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that is no more: pid 1 was not started at another time.
pub(crate) fn dead() -> ProcessId {
    ProcessId { pid: 1, start_time: u64::MAX }
}

/// Sends a signal to a child.
pub(crate) fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, signal).unwrap();
}

pub(crate) fn done(text: &str) -> Response {
    Response::Done { text: text.into() }
}

pub(crate) fn notice(text: &str) -> Response {
    Response::Notice { text: text.into() }
}

pub(crate) fn status(device: &str) -> Status {
    Status {
        device: device.into(),
        path: format!("/dev/{device}"),
        export: ExportInfo { size: 1 << 20, block_size: 512, flags: 1 },
        read_only: false,
        kernel_api: "ioctl".into(),
        lanes: 1,
        on_backend_loss: "hold".into(),
        under_way: None,
        recording: None,
        holder_pid: 10,
        sitter_pid: 11,
        sitter_tracer_pid: None,
        backend: BackendStatus {
            state: BackendState::Running,
            detail: String::new(),
            pid: Some(12),
            process_state: Some('S'),
            tracer_pid: None,
            description: "mem:1M".into(),
            program: vec!["/bin/nbd-serve".into(), "mem:1M".into()],
            restarts: 0,
            retry: None,
        },
        in_flight: Vec::new(),
        totals: TotalsStatus::default(),
        latencies: Vec::new(),
        last_recovery: None,
        poisoned: Vec::new(),
    }
}

/// Tries until there is something.
#[track_caller]
pub(crate) fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "it did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}
