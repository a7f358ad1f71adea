//! One device's life: backends are started, killed and started again while the peer goes on.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nbd_ledger::Ledger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use crate::backend::{LEDGER, ORDERS, Order, Orders, PASSED, STORAGE};
use crate::peer::Peer;
use crate::record;
use crate::script::{DEVICE, LAYOUT, Step};
use crate::situation::{self, Situation};

/// A crash point that no backend reaches.
pub(crate) const NO_CRASH: u64 = u64::MAX;
const RUN_TIMEOUT: Duration = Duration::from_secs(300);

/// How the backends work and what connects them with the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// How the first backend answers, and how its successors do.
    pub(crate) orders: [Order; 2],
    /// The lane's buffer holds a few pages, the peer reads slowly, and signals interrupt the
    /// backend while it waits for space: so replies are sent in many parts.
    pub(crate) narrow: bool,
}

/// How a run went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) deaths: usize,
    pub(crate) situations: BTreeSet<Situation>,
    /// Crash points that the last backend passed.
    pub(crate) passed: u64,
    /// The words of the ledger that the first backend left.
    pub(crate) left: Option<String>,
}

/// Runs a script against backends that die at the given crash points, one after the other, and
/// a last one that lives. Panics, naming `label`, at the first thing that is wrong.
pub(crate) fn run(setting: Setting, script: &[Step], crashes: &[u64], label: &str) -> Outcome {
    let mut run = Run::new(setting, crashes, label);
    run.play(script);
    run.leave()
}

/// A device, its holder and its present backend.
pub(crate) struct Run {
    setting: Setting,
    label: String,
    crashes: Vec<u64>,
    pub(crate) peer: Peer,
    pub(crate) ledger: File,
    storage: File,
    /// The holder's duplicate of the server end, which outlives every backend.
    lane: UnixStream,
    child: Child,
    stdout: ChildStdout,
    stdout_bytes: Vec<u8>,
    since: Instant,
    /// Keeps what the first backend leaves.
    pub(crate) records: bool,
    pub(crate) outcome: Outcome,
}

impl Run {
    pub(crate) fn new(setting: Setting, crashes: &[u64], label: &str) -> Self {
        let (lane, kernel) = UnixStream::pair().expect("a socket pair");
        if setting.narrow {
            setsockopt(&lane, sockopt::SndBuf, &1).expect("the smallest buffer");
        }
        let ledger = File::from(Ledger::create(&LAYOUT).expect("a ledger"));
        let storage = File::from(
            memfd_create(c"storage", MFdFlags::MFD_CLOEXEC).expect("memory for the storage"),
        );
        storage.set_len(DEVICE).expect("memory for the storage");
        let mut crashes = crashes.to_vec();
        crashes.reverse();
        let first = crashes.pop().unwrap_or(NO_CRASH);
        let (child, stdout) = start(setting.orders[0], first, &lane, &ledger, &storage);
        Self {
            setting,
            label: label.to_owned(),
            crashes,
            peer: Peer::new(kernel, if setting.narrow { 3000 } else { 1 << 20 }),
            ledger,
            storage,
            lane,
            child,
            stdout,
            stdout_bytes: Vec::new(),
            since: Instant::now(),
            records: false,
            outcome: Outcome::default(),
        }
    }

    /// Sends all requests of a script.
    pub(crate) fn play(&mut self, script: &[Step]) {
        for step in script {
            match step {
                Step::Burst(specs) => {
                    for spec in specs {
                        self.wait_until(|run| run.peer.may_ask(spec));
                        let bytes = self.peer.ask(spec);
                        self.peer.queue(&bytes);
                    }
                }
                Step::Pieces(specs, cuts) => {
                    let mut bytes = Vec::new();
                    for spec in specs {
                        self.wait_until(|run| run.peer.may_ask(spec));
                        bytes.extend(self.peer.ask(spec));
                    }
                    self.send_in_pieces(&bytes, cuts);
                }
                Step::Settle => self.wait_until(|run| run.peer.is_settled()),
            }
        }
        self.wait_until(|run| !run.peer.wants_to_send());
    }

    fn send_in_pieces(&mut self, bytes: &[u8], cuts: &[usize]) {
        let mut start = 0;
        for &cut in cuts {
            self.peer.queue(&bytes[start..cut]);
            self.wait_until(|run| {
                let arrived = situation::received_bytes(&run.ledger) >= run.peer.sent;
                !run.peer.wants_to_send() && arrived
            });
            start = cut;
        }
        self.peer.queue(&bytes[start..]);
    }

    /// Waits for all answers, disconnects, waits for the last backend's end and checks what remains.
    pub(crate) fn leave(mut self) -> Outcome {
        self.wait_until(|run| run.peer.is_settled());
        self.peer.queue(&Peer::disconnect_request());
        while !self.turn(100) {}
        self.peer.check_end();
        let mut stored = vec![0; DEVICE as usize];
        let read = self.storage.read_exact_at(&mut stored, 0);
        read.expect("the storage is as long as the device");
        assert!(stored == self.peer.device, "the storage's bytes at the end");
        std::mem::take(&mut self.outcome)
    }

    fn wait_until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            assert!(!self.turn(1), "a backend left without being asked to");
        }
    }

    /// Moves bytes and looks after the backend; returns whether it has left in order.
    pub(crate) fn turn(&mut self, timeout_ms: u16) -> bool {
        assert!(self.since.elapsed() < RUN_TIMEOUT, "nothing moves any more");
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.peer.max_read > 0);
        events.set(PollFlags::POLLOUT, self.peer.wants_to_send());
        let mut ready = [
            PollFd::new(self.peer.socket().as_fd(), events),
            PollFd::new(self.stdout.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::from(timeout_ms)).expect("poll works");
        let [lane, stdout] = ready.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if lane.contains(PollFlags::POLLOUT) {
            self.peer.send();
        }
        if lane.contains(PollFlags::POLLIN) {
            self.peer.receive();
            if self.setting.narrow {
                self.interrupt();
            }
        }
        !stdout.is_empty() && self.listen()
    }

    /// Stops the backend and lets it go on, as a debugger does.
    fn interrupt(&self) {
        for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
            // It may be dead, but it is not reaped, so the number is still its own.
            kill(self.pid(), signal).expect("the backend can be signalled");
        }
    }

    /// Takes what the backend says; at its end, starts a successor unless it left in order.
    fn listen(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = self.stdout.read(&mut buffer).expect("a pipe is readable");
        self.stdout_bytes.extend_from_slice(&buffer[..count]);
        if count > 0 {
            return false;
        }
        let status = self.child.wait().expect("a child can be waited for");
        let output = String::from_utf8_lossy(&std::mem::take(&mut self.stdout_bytes)).into_owned();
        if status.success() {
            let passed = output.split_once(PASSED).expect("the count of crash points");
            let digits = passed.1.lines().next().unwrap_or_default();
            self.outcome.passed = digits.parse().expect("a number");
            return true;
        }
        assert_eq!(status.signal(), Some(9), "a backend failed: {status}{output}");
        self.outcome.deaths += 1;
        self.outcome.situations.extend(situation::situations(&self.ledger));
        if self.records {
            self.outcome.left.get_or_insert_with(|| record::words(&self.ledger));
        }
        let crash_at = self.crashes.pop().unwrap_or(NO_CRASH);
        let order = self.setting.orders[1];
        (self.child, self.stdout) = start(order, crash_at, &self.lane, &self.ledger, &self.storage);
        false
    }

    /// Kills the present backend wherever it is, and starts a successor.
    pub(crate) fn kill(&mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("the backend can be killed");
        let deaths = self.outcome.deaths;
        self.wait_until(|run| run.outcome.deaths > deaths);
    }

    /// Kills the present backend some time from now.
    pub(crate) fn kill_after(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            assert!(!self.turn(0), "a backend left without being asked to");
        }
        self.kill();
    }

    /// Waits until the peer could read something, and more does not come: the backend is done or
    /// waits for space.
    pub(crate) fn wait_until_nothing_comes(&mut self) {
        let mut before = 0;
        let mut same = 0;
        while before == 0 || same < 3 {
            assert!(!self.turn(1), "a backend left without being asked to");
            let now = self.peer.waiting();
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { setting, label, outcome, .. } = self;
            eprintln!("{label}: {setting:?}, {outcome:?}");
        }
        // Does nothing to a backend that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a backend: this test's own program, told to run one test only.
fn start(
    order: Order,
    crash_at: u64,
    lane: &UnixStream,
    ledger: &File,
    storage: &File,
) -> (Child, ChildStdout) {
    let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let socket: OwnedFd = lane.try_clone().expect("a duplicate of the lane").into();
    let mut child = Command::new(std::env::current_exe().expect("the test's own path"))
        .args(["backend_process", "--exact", "--ignored"])
        .args(["--nocapture", "--test-threads=1"])
        .env(ORDERS, Orders { order, crash_at }.print())
        .env(LEDGER, path(ledger))
        .env(STORAGE, path(storage))
        .stdin(socket)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child can be started");
    let stdout = child.stdout.take().expect("stdout was piped");
    (child, stdout)
}
