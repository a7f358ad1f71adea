//! Backends that join from outside, by hand or under a debugger.

use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use nbd_control::Channel;
use nbd_control::backend::{FromBackend, FromHolder, Hello};
use nbd_control::registry::Registry;
use nbd_control::status::BackendState;
use nbd_tests::command::PROGRAM_TIMEOUT;
use nbd_tests::ctl::{ctl, start_ctl, start_serve};
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read};
use nbd_tests::process;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{self, SIGCONT, SIGKILL, SIGSTOP};

const MIB: u64 = 1 << 20;
const ROUNDS: u32 = 800;

kernel_tests!(
    a_backend_joins_by_hand_and_another_takes_over,
    a_backend_that_joins_is_recognised_however_fast_it_talks,
);

fn a_backend_joins_by_hand_and_another_takes_over(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", 4 * MIB);
    let arguments = ["attach", "--external", "--device", "nbd0"];
    let attach = start_ctl(arguments.into_iter().chain(["--kernel-api", api.name()]));
    wait_until("an invitation to join", EVENT_TIMEOUT, || {
        attach.words().contains("nbd-serve --join nbd0")
    });
    assert!(Registry::new(None).join_socket(0).exists());
    let first = start_serve(["--join", "nbd0", &spec]);
    let device = Device::printed_by(&attach.finish(PROGRAM_TIMEOUT).succeeds());
    assert_eq!(device.backend(), first.pid());
    let noise = Random::by_clock().bytes(MIB as usize);
    disk::write(&device.path(), MIB, &noise);
    let has_noise = || assert!(disk::read(&device.path(), MIB, MIB) == noise);

    let refused = start_serve(["--join", "nbd0", &spec]).finish(PROGRAM_TIMEOUT);
    let pid = first.pid().to_string();
    refused.fails_with(1).says(&[&pid, "--takeover"]);
    assert_eq!(device.wait_running().backend.pid, Some(first.pid()));

    // One that hangs is no obstacle.
    first.signal(SIGSTOP);
    let second = start_serve(["--join", "/dev/nbd0", "--takeover", &spec]);
    assert_eq!(first.finish(PROGRAM_TIMEOUT).code, 128 + SIGKILL as i32);
    wait_until("the second one serves", EVENT_TIMEOUT, || {
        let backend = device.status().backend;
        backend.state == BackendState::Running && backend.pid == Some(second.pid())
    });
    has_noise();

    // Nobody starts it again; what is asked meanwhile waits for whoever joins.
    second.signal(SIGKILL);
    second.finish(PROGRAM_TIMEOUT);
    wait_until("it is waited for", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Waiting
    });
    ctl(["wait", "nbd0", "--timeout", "1"]).fails_with(5);
    ctl(["restart", "nbd0"]).fails_with(4).says(&["joins by hand"]);
    let mut read = start_read(&device.path(), 0);
    wait_until("a request waits", EVENT_TIMEOUT, || !device.status().in_flight.is_empty());
    let third = start_serve(["--join", "nbd0", &spec]);
    ctl(["wait", "nbd0", "--timeout", "300"]).succeeds();
    wait_until("it is answered", EVENT_TIMEOUT, || !read.is_running());
    read.finish(PROGRAM_TIMEOUT).succeeds();
    has_noise();
    device.detach();
    third.finish(PROGRAM_TIMEOUT).succeeds();
}

/// Who a backend is, the kernel tells the holder, with every byte and from the first one on. A
/// holder that asks for that only after it has accepted a connection takes some for nobody: those
/// that talk between these two system calls, between which it is stopped here now and then.
fn a_backend_that_joins_is_recognised_however_fast_it_talks(api: Api) {
    let device = Device::attach(api, ["mem:1M"]);
    let (status, index) = (device.status(), device.index());
    let hello = Hello {
        // Of no release: it is refused, but for no other reason than that.
        ledger_version: 0,
        description: "a test".into(),
        export: status.export,
        takeover: false,
    };
    let mut random = Random::by_clock();
    let holder = Holder(status.holder_pid);
    for _ in 0..ROUNDS {
        holder.signal(SIGSTOP);
        let socket = Registry::new(None).join_socket(index);
        let stream = UnixStream::connect(socket).expect("a connection");
        holder.signal(SIGCONT);
        sleep(Duration::from_micros(random.within(&(0..=2000))));
        holder.signal(SIGSTOP);
        let mut channel = Channel::new(stream).expect("a channel");
        channel.send(&FromBackend::Hello(hello.clone()), &[]).expect("a hello sent");
        holder.signal(SIGCONT);
        let answer = channel.receive_within(EVENT_TIMEOUT).expect("an answer").message;
        let FromHolder::Refusal { reason } = answer else {
            panic!("not refused: {answer:?}");
        };
        assert!(reason.contains("ledger version 0"), "{reason}");
    }
    assert_eq!(device.wait_running().backend.pid, status.backend.pid);
    device.detach();
}

/// A holder that is not left stopped when the test fails.
struct Holder(i32);

impl Holder {
    fn signal(&self, signal: Signal) {
        assert!(process::signal(self.0, signal));
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        process::signal(self.0, SIGCONT);
    }
}
