//! Backends come and go: killed, replaced, joined by hand.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use nbd_control::registry::Registry;
use nbd_control::status::{BackendState, Status};
use nbd_tests::command::{Output, PROGRAM_TIMEOUT, start};
use nbd_tests::ctl::{ctl, program, start_ctl, start_serve};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::nbdkit::Nbdkit;
use nbd_tests::page::root;
use nbd_tests::process::{signal, user};
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGTERM};

const MIB: u64 = 1 << 20;

kernel_tests!(
    memory_outlives_the_process_that_serves_it,
    restart_and_replace_change_the_process_and_nothing_else,
    wait_waits_for_ready_and_for_gone,
    a_backend_runs_as_another_user,
    restart_never_starts_no_backend_again,
    attach_prints_the_path_and_lets_go_of_the_shells_pipe,
    a_detach_waits_for_the_backend_to_close_its_connections,
    a_detach_starts_no_backend_and_reports_none_lost,
    a_detach_by_force_does_not_wait_for_slow_connections,
);

/// Writes noise to the device.
#[track_caller]
fn write_noise(path: &Path) -> Vec<u8> {
    let noise = Random::by_clock().bytes(MIB as usize);
    disk::write(path, MIB, &noise);
    noise
}

#[track_caller]
fn has_noise(path: &Path, noise: &[u8]) {
    let found = disk::read(path, MIB, MIB);
    assert!(found == noise, "other data than was written");
}

fn memory_outlives_the_process_that_serves_it(api: Api) {
    let device = Device::attach(api, ["mem:8M"]);
    let noise = write_noise(&device.path());
    for _ in 0..3 {
        let backend = device.backend();
        assert!(signal(backend, SIGKILL));
        has_noise(&device.path(), &noise);
        assert_ne!(device.backend(), backend);
    }
    ctl(["restart", &device.name()]).succeeds();
    has_noise(&device.path(), &noise);
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    assert!(signal(device.backend(), SIGKILL));
    wait_until("both are dead", EVENT_TIMEOUT, || !holder.is_alive());
    ctl(["adopt", &device.name()]).succeeds();
    has_noise(&device.path(), &noise);
    device.detach();
    // Another device is another memory.
    let device = Device::attach(api, ["mem:8M"]);
    has_noise(&device.path(), &vec![0; noise.len()]);
    device.detach();
}

fn restart_and_replace_change_the_process_and_nothing_else(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", 4 * MIB);
    let device = Device::attach(api, [&spec]);
    let (name, noise) = (device.name(), write_noise(&device.path()));
    let mut backends = vec![device.backend()];
    let other_build = files.join("newer-build");
    fs::copy(program("nbd-serve"), &other_build).expect("a copy of nbd-serve");
    let other_build = other_build.display().to_string();
    for command in [
        vec!["restart", &name],
        vec!["replace", &name],
        vec!["replace", &name, &spec],
        vec!["replace", &name, "--", &other_build, &spec],
        vec!["restart", &name],
    ] {
        ctl(&command).succeeds();
        let backend = device.backend();
        assert!(!backends.contains(&backend), "{command:?}");
        has_noise(&device.path(), &noise);
        backends.push(backend);
    }
    // What was put in its place is what is started when it is lost.
    assert!(signal(device.backend(), SIGKILL));
    has_noise(&device.path(), &noise);
    let backend = device.wait_running().backend;
    assert_eq!(backend.program, [other_build, spec]);
    let running = fs::read_link(format!("/proc/{}/exe", device.backend()));
    assert_eq!(running.expect("a program"), files.join("newer-build"));
    device.detach();
}

fn wait_waits_for_ready_and_for_gone(api: Api) {
    let device = Device::attach(api, ["mem:1M"]);
    let name = device.name();
    ctl(["wait", &name]).succeeds();
    let gone = ["wait", &name, "--for", "gone"];
    ctl(gone.into_iter().chain(["--timeout", "0.5"])).fails_with(5);
    let mut waiting = start_ctl(gone);
    std::thread::sleep(Duration::from_millis(500));
    assert!(waiting.is_running());
    device.detach();
    waiting.finish(PROGRAM_TIMEOUT).succeeds();
    ctl(gone).succeeds();
    ctl(["wait", &name]).fails_with(3);
}

fn a_backend_runs_as_another_user(api: Api) {
    let device = Device::attach(api, ["--user", "nobody", "mem:8M"]);
    let noise = write_noise(&device.path());
    let first = device.backend();
    let nobody = user(first);
    assert_ne!(nobody, 0);
    assert!(signal(first, SIGKILL));
    has_noise(&device.path(), &noise);
    let second = device.wait_running().backend.pid.expect("a backend");
    assert_ne!(second, first);
    assert_eq!(user(second), nobody);
    device.detach();
}

fn restart_never_starts_no_backend_again(api: Api) {
    let device = Device::attach(api, ["--restart", "never", "mem:8M"]);
    let noise = write_noise(&device.path());
    device.signal_backend(SIGKILL);
    wait_until("it is waited for", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Waiting
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(device.status().backend.pid, None);
    ctl(["restart", &device.name()]).succeeds();
    has_noise(&device.path(), &noise);

    // A signal that stops it in order is no failure either, and no reason to lose the device.
    device.signal_backend(SIGTERM);
    wait_until("it is gone", EVENT_TIMEOUT, || device.status().backend.pid.is_none());
    ctl(["restart", &device.name()]).succeeds();
    has_noise(&device.path(), &noise);
    device.detach();
}

/// A daemon that kept the pipe open would hang the shell.
fn attach_prints_the_path_and_lets_go_of_the_shells_pipe(api: Api) {
    let (ctl, api) = (program("nbd-ctl"), api.name());
    let script = format!("path=$({ctl} attach --kernel-api {api} mem:1M 2>&1) && echo \"$path\"");
    let shell = start("sh", ["-c", &script]).finish(PROGRAM_TIMEOUT).succeeds();
    let device = Device::printed_by(&shell);
    device.detach();
}

/// The one that serves a device may have things to do at its end: here, to wait until a server closes
/// a connection that was said goodbye to, which takes the server its time.
fn a_detach_waits_for_the_backend_to_close_its_connections(api: Api) {
    let files = TempDir::new();
    let server = Nbdkit::start_slow_to_close(&files.join("socket"), Duration::from_secs(1));
    let arguments = ["attach", "--external", "--device", "nbd0", "--kernel-api", api.name()];
    let attach = start_ctl(arguments);
    wait_until("an invitation to join", EVENT_TIMEOUT, || {
        attach.words().contains("nbd-serve --join nbd0")
    });
    let mut backend = start_serve(["--join", "nbd0", &server.uri()]);
    let device = Device::printed_by(&attach.finish(PROGRAM_TIMEOUT).succeeds());
    has_noise(&device.path(), &vec![0; MIB as usize]);
    device.detach();
    // It was waited for, and nobody has killed it.
    assert!(!backend.is_running());
    backend.finish(PROGRAM_TIMEOUT).succeeds();
}

/// With netlink, the driver tells the backend to end before the holder knows that the device is
/// released. That is no loss, and needs no successor. Nor is it one if the lanes are ended by force.
fn a_detach_starts_no_backend_and_reports_none_lost(api: Api) {
    let attach = |spec| Device::attach(api, ["--restart", "always", spec]);
    parts_in_peace(attach("mem:1M"), Device::detach);

    // The next holder is no parent of the backend, so it never learns how that has ended.
    let device = attach("mem:1M");
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    ctl(["adopt", &device.name()]).succeeds();
    parts_in_peace(device, Device::detach);

    let device = attach("delay@mem:1M");
    ctl(["set", &device.name(), "delay.read=300s"]).succeeds();
    let reads: Vec<_> = (0..4).map(|at| disk::start_read(&device.path(), at * 4096)).collect();
    wait_until("requests", EVENT_TIMEOUT, || device.status().in_flight.len() == reads.len());
    parts_in_peace(device, Device::detach_by_force);
    for read in reads {
        read.finish(PROGRAM_TIMEOUT).fails_with(1);
    }
}

#[track_caller]
fn parts_in_peace(device: Device, detach: impl FnOnce(Device) -> Output) {
    let log = Registry::new(None).log(device.index());
    let mut log = fs::File::open(log).expect("a log");
    detach(device);
    let mut text = String::new();
    log.read_to_string(&mut text).expect("a log in UTF-8");
    assert!(text.contains("event=detached") && text.contains("restarts=0"), "{text}");
    for event in ["backend-lost", "recovered"] {
        assert!(!text.contains(&format!("event={event}")), "{text}");
    }
}

/// Whoever does not end is killed, and whoever forces does not have to wait for that.
fn a_detach_by_force_does_not_wait_for_slow_connections(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 4 * MIB).display().to_string();
    let examples = root().join("examples/python");
    let script = format!(
        "import sys, time; sys.path.insert(0, '{}'); import backend; \
         backend.main(sys.argv[1]); time.sleep(3600)",
        examples.display()
    );
    let device = Device::attach(api, ["--", "python3", "-B", "-c", &script, &image]);
    let backend = device.backend();
    let patient = start_ctl(["detach", &device.name()]);
    let waits =
        |status: &Status| status.under_way.as_deref().unwrap_or("").contains("end of its backend");
    wait_until("the end of the lanes", EVENT_TIMEOUT, || waits(&device.status()));
    let late = ctl(["restart", &device.name()]);
    late.fails_with(4).says(&["is being detached"]);
    device.detach_by_force();
    patient.finish(PROGRAM_TIMEOUT).fails_with(4).says(&["another detach is under way"]);
    assert!(!signal(backend, SIGCONT));
}
