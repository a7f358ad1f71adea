//! Detach by force, from every state that a device can be in: it ends, the device is clear, and no
//! process waits for it any more.
//!
//! Newer drivers change a device's size under their lock, and wait there until all that is in flight
//! is answered. [`Freezer`] has them do it.

use std::process::Command;

use nbd_control::status::{BackendState, Stage};
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, launch};
use nbd_tests::ctl::{ctl, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read};
use nbd_tests::nbdkit::Nbdkit;
use nbd_tests::process;
use nbd_tests::temp::TempDir;
use nbd_tests::under::{UNDER, Under};
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const IN_USE: i32 = 4;
const TIMED_OUT: i32 = 5;

kernel_tests!(
    a_resize_is_not_begun_while_a_server_does_not_answer,
    detach_by_force_frees_a_device_whose_size_is_being_changed,
    detach_by_force_frees_a_device_whose_queue_is_frozen,
    detach_by_force_frees_a_paused_device,
    detach_by_force_frees_a_device_without_a_backend,
    detach_by_force_frees_a_device_with_full_sockets,
    detach_by_force_frees_a_device_that_is_being_detached,
    detach_by_force_does_not_say_detached_while_a_backend_is_in_the_kernel,
);

/// Makes the driver change the size, to what it is: newer ones then wait for all in flight.
struct Freezer(Running);

const OVER_IOCTL: &str = "
import fcntl, os, sys
device = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(device, 0xab07, int(sys.argv[3]) // 4096)
";

const OVER_NETLINK: &str = "
import socket, struct, sys
def attribute(kind, data):
    data = struct.pack('HH', 4 + len(data), kind) + data
    return data + bytes(-len(data) % 4)
def call(family, command, version, attributes):
    body = struct.pack('BBH', command, version, 0) + attributes
    netlink.send(struct.pack('IHHII', 16 + len(body), family, 5, 1, 0) + body)
    return netlink.recv(8192)
netlink = socket.socket(16, socket.SOCK_RAW, 16)
netlink.bind((0, 0))
answer, at, family = call(16, 3, 2, attribute(2, b'nbd\\0')), 20, None
while family is None:
    length, kind = struct.unpack_from('HH', answer, at)
    if kind == 1:
        family, = struct.unpack_from('H', answer, at + 4)
    at += (length + 3) & ~3
name = sys.argv[2].encode()
number = attribute(1, struct.pack('I', int(name[3:])))
call(family, 3, 1, number + attribute(2, struct.pack('Q', int(sys.argv[3]))) + attribute(10, name + b'\\0'))
";

impl Freezer {
    fn start(api: Api, device: &Device) -> Self {
        let script = match api {
            Api::Ioctl => OVER_IOCTL,
            Api::Netlink => OVER_NETLINK,
        };
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(device.path()).arg(device.name());
        command.arg(device.status().export.size.to_string());
        let mut this = Self(launch(command));
        // It has come as far as it can: to its end, or to where it waits for all in flight.
        let pid = this.0.pid();
        wait_until("the size is being changed", EVENT_TIMEOUT, || {
            !this.0.is_running() || process::sleeps_in(pid, "freeze")
        });
        this
    }

    #[track_caller]
    fn ends(self) {
        self.0.finish(PROGRAM_TIMEOUT);
    }
}

/// Detaches by force and checks that nothing is left, nor any of these reads.
#[track_caller]
fn force(device: Device, reads: Vec<Running>) {
    device.detach_by_force();
    for read in reads {
        read.finish(PROGRAM_TIMEOUT).fails_with(1).says(&["Input/output error"]);
    }
}

/// Starts direct reads, far enough apart to be several requests, and waits until they wait.
#[track_caller]
fn stuck_reads(device: &Device, count: u64) -> Vec<Running> {
    let reads: Vec<_> = (0..count).map(|at| start_read(&device.path(), at * MIB)).collect();
    wait_until("reads that wait", EVENT_TIMEOUT, || {
        device.status().in_flight.len() as u64 == count
    });
    reads
}

fn attach_remote(api: Api, files: &TempDir) -> (Device, Nbdkit) {
    let server = Nbdkit::start(&files.join("socket"), &files.image("disk.img", SIZE));
    let device = Device::attach(api, ["--lanes", "2", &server.uri()]);
    (device, server)
}

fn a_resize_is_not_begun_while_a_server_does_not_answer(api: Api) {
    let files = TempDir::new();
    let (device, server) = attach_remote(api, &files);
    let name = device.name();
    assert!(process::signal(server.pid(), SIGSTOP));
    let reads = stuck_reads(&device, 1);
    let refused = ctl(["resize", "--force", &name, "32M"]).fails_with(IN_USE);
    refused.says(&["is not resized while it is stalled", "read of 4096 bytes at 0"]);
    assert_eq!(device.status().export.size, SIZE);
    force(device, reads);
    assert!(process::signal(server.pid(), SIGCONT));
}

fn detach_by_force_frees_a_device_whose_size_is_being_changed(api: Api) {
    let files = TempDir::new();
    let (device, server) = attach_remote(api, &files);
    assert!(process::signal(server.pid(), SIGSTOP));
    let reads = stuck_reads(&device, 3);
    let freezer = Freezer::start(api, &device);
    force(device, reads);
    freezer.ends();
    assert!(process::signal(server.pid(), SIGCONT));
}

/// By another program, such as udev or an operator: in 6.12, by any store to `queue/`.
fn detach_by_force_frees_a_device_whose_queue_is_frozen(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", SIZE)]);
    device.signal_backend(SIGSTOP);
    let reads = stuck_reads(&device, 2);
    let mut command = Command::new("sh");
    let store = format!("echo 1024 >/sys/block/{}/queue/nr_requests", device.name());
    command.args(["-c", &store]);
    let mut store = launch(command);
    let pid = store.pid();
    wait_until("the queue is frozen", EVENT_TIMEOUT, || {
        !store.is_running() || process::sleeps_in(pid, "freeze")
    });
    force(device, reads);
    store.finish(PROGRAM_TIMEOUT);
}

fn detach_by_force_frees_a_paused_device(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--lanes", "2", &files.spec("disk.img", SIZE)]);
    ctl(["pause", &device.name()]).succeeds();
    let reads = stuck_reads(&device, 3);
    let freezer = Freezer::start(api, &device);
    force(device, reads);
    freezer.ends();
}

fn detach_by_force_frees_a_device_without_a_backend(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--restart", "never", &files.spec("disk.img", SIZE)]);
    device.signal_backend(SIGKILL);
    wait_until("it has no backend", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Waiting
    });
    let reads = stuck_reads(&device, 2);
    let freezer = Freezer::start(api, &device);
    force(device, reads);
    freezer.ends();
}

/// What is in flight is more than the sockets take, so that a writer waits inside the driver.
fn detach_by_force_frees_a_device_with_full_sockets(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--lanes", "1", &files.spec("disk.img", SIZE)]);
    device.signal_backend(SIGSTOP);
    let zeroes = |at: u64| {
        let mut command = Command::new("dd");
        let words = ["if=/dev/zero", "oflag=direct", "bs=1M", "count=1", "conv=notrunc"];
        let place = [format!("of={}", device.path().display()), format!("seek={at}")];
        command.args(words).args(place);
        launch(command)
    };
    let writes: Vec<_> = (0..40).map(zeroes).collect();
    let blocked = |write: &Running| {
        nbd_control::process::stat(write.pid()).is_some_and(|stat| matches!(stat.state, 'D' | 'S'))
    };
    wait_until("writes that wait", EVENT_TIMEOUT, || {
        // More than the socket holds is on its way.
        writes.iter().filter(|write| blocked(write)).count() == writes.len()
            && device.status().in_flight.len() > 10
    });
    force(device, writes);
}

fn detach_by_force_frees_a_device_that_is_being_detached(api: Api) {
    let files = TempDir::new();
    let (device, server) = attach_remote(api, &files);
    disk::write_to_cache(&device.path(), 0, &vec![b'x'; MIB as usize]);
    assert!(process::signal(server.pid(), SIGSTOP));
    let patient = start_ctl(["detach", &device.name()]);
    wait_until("what it writes back", EVENT_TIMEOUT, || !device.status().in_flight.is_empty());
    let freezer = Freezer::start(api, &device);
    force(device, Vec::new());
    patient.finish(PROGRAM_TIMEOUT).fails_with(IN_USE).says(&["another detach is under way"]);
    freezer.ends();
    assert!(process::signal(server.pid(), SIGCONT));
}

/// A backend that sleeps in the kernel cannot be killed, so nothing may answer in its place. An ioctl
/// device is freed all the same; a netlink device whose size is being changed is not, and stays
/// reachable.
fn detach_by_force_does_not_say_detached_while_a_backend_is_in_the_kernel(api: Api) {
    let files = TempDir::new();
    let under = Under::new(&files);
    let device = Device::attach(api, ["--no-spare", &format!("file:{UNDER},direct")]);
    let (name, processes) = (device.name(), device.processes());
    under.nbdkit.signal(SIGSTOP);
    let read = start_read(&device.path(), MIB);
    wait_until("a read that is executed", EVENT_TIMEOUT, || {
        let status = device.status();
        status.in_flight.iter().any(|read| read.stage == Stage::Executing)
    });
    let freezer = Freezer::start(api, &device);
    let forced = ctl(["detach", "--force", &name]);
    if forced.code == 0 {
        forced.says(&["failed with EIO"]);
        read.finish(PROGRAM_TIMEOUT).fails_with(1).says(&["Input/output error"]);
        under.nbdkit.signal(SIGCONT);
    } else {
        assert_eq!(api, Api::Netlink, "{}", forced.stderr);
        forced.fails_with(TIMED_OUT).says(&["is not detached", "uninterruptible"]);
        ctl(["status", &name]).succeeds();
        under.nbdkit.signal(SIGCONT);
        read.finish(PROGRAM_TIMEOUT).fails_with(1).says(&["Input/output error"]);
        ctl(["detach", "--force", &name]).succeeds().says(&["is detached"]);
    }
    freezer.ends();
    device.has_left_nothing(&processes);
    drop(device);
    under.end();
}
