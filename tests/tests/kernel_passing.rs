//! Programs that have a device open for a moment only: attach and detach wait for them, and come to
//! no harm by them.

use std::process::Command;

use nbd_control::process;
use nbd_control::status::BackendState;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, launch};
use nbd_tests::ctl::{ctl, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for, wait_until};
use nbd_tests::{Api, disk, kernel_tests, report};

const MIB: u64 = 1 << 20;
/// How often a device is detached among readers.
const ROUNDS: usize = 20;
const READERS: usize = 3;
const IN_USE: i32 = 4;

kernel_tests!(
    a_detach_goes_through_when_a_reader_comes_after_the_backend_was_told_to_end,
    a_detach_among_passing_readers_goes_through_or_changes_nothing,
    an_attach_of_a_given_device_waits_for_passing_users,
    an_attach_of_a_given_device_names_the_users_that_stay,
);

/// Reads a block again and again, with the device opened anew each time.
fn read_again_and_again(device: &Device) -> Running {
    let read =
        format!("dd if={} of=/dev/null bs=4096 count=1 iflag=direct", device.path().display());
    let mut command = Command::new("sh");
    command.args(["-c", &format!("while :; do {read} 2>/dev/null || sleep 0.01; done")]);
    launch(command)
}

fn a_detach_among_passing_readers_goes_through_or_changes_nothing(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let mut refused = 0;
    for _ in 0..ROUNDS {
        let device = Device::attach(api, [&spec]);
        let name = device.name();
        let readers: Vec<_> = (0..READERS).map(|_| read_again_and_again(&device)).collect();
        device.wait_progress();
        let output = ctl(["detach", &name]);
        if output.code == 0 {
            drop(readers);
            device.has_left_nothing(&[]);
            continue;
        }
        refused += 1;
        output.fails_with(IN_USE).says(&["opened by dd"]);
        // Nothing has changed, so the readers are served, and a read that is started now, too.
        device.wait_progress();
        assert_eq!(device.wait_running().backend.state, BackendState::Running);
        drop(readers);
        disk::read_all(&device.path());
        wait_for("the end of the readers", EVENT_TIMEOUT, || {
            let output = ctl(["detach", &name]);
            (output.code == 0).then_some(())
        });
    }
    report(&format!("{}: {ROUNDS} detaches, {refused} refused and tried again", api.name()));
}

/// Opening a device that is being disconnected reads its partition table, and all that open or close
/// it wait for that; but the backend has been told to end. strace keeps the process that told it so
/// from closing the device at once, and makes the holder's own looks slow, which it has to bear.
fn a_detach_goes_through_when_a_reader_comes_after_the_backend_was_told_to_end(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let (name, processes) = (device.name(), device.processes());
    let state = device.state().expect("a state");
    let (holder, backend) = (state.holder.pid, state.backend.expect("a backend"));
    let delay = "inject=ioctl:delay_exit=1000000";
    let pid = holder.to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=ioctl", "-e", delay, "-p", &pid]);
    let strace = launch(strace);
    wait_until("strace traces the holder", EVENT_TIMEOUT, || process::tracer(holder).is_some());
    let detach = start_ctl(["detach", &name]);
    wait_until("the backend has ended", EVENT_TIMEOUT, || !backend.is_alive());
    let read = disk::start_read(&device.path(), 0);
    detach.finish(PROGRAM_TIMEOUT).succeeds();
    read.finish(PROGRAM_TIMEOUT);
    device.has_left_nothing(&processes);
    drop(strace);
}

/// Keeps the device open until its standard input ends.
fn keep_open(device: &Device, seconds: &str) -> Running {
    let mut command = Command::new("sh");
    let script = format!("exec sleep {seconds} < {}", device.path().display());
    command.args(["-c", &script]);
    let running = launch(command);
    let path = format!("/proc/{}/fd/0", running.pid());
    wait_until("the device is open", EVENT_TIMEOUT, || {
        std::fs::read_link(&path).is_ok_and(|link| link == device.path())
    });
    running
}

fn an_attach_of_a_given_device_waits_for_passing_users(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let free = Device::numbered(3);
    let passing = keep_open(&free, "1");
    let device = Device::attach(api, ["--device", &free.name(), &spec]);
    disk::read_all(&device.path());
    drop(passing);
    device.detach();
    drop(free);
}

/// The ioctl interface sets up a device that others have open, and netlink does not.
fn an_attach_of_a_given_device_names_the_users_that_stay(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let free = Device::numbered(3);
    let mut staying = keep_open(&free, "3600");
    let pid = format!("opened by sleep (pid {})", staying.pid());
    let attach = ["attach", "--kernel-api", api.name(), "--device", &free.name(), &spec];
    match api {
        Api::Netlink => {
            ctl(attach).fails_with(IN_USE).says(&[&free.name(), &pid]);
            assert!(staying.is_running());
            ctl(["status", &free.name()]).fails_with(3);
        }
        Api::Ioctl => {
            ctl(attach).succeeds();
            ctl(["detach", &free.name()]).fails_with(IN_USE).says(&[&pid]);
        }
    }
    drop(staying);
    if api == Api::Ioctl {
        Device::numbered(free.index()).detach();
    }
}
