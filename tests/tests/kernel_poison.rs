//! A request that crashes its backends is given up alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nbd_control::status::{BackendState, Status};
use nbd_tests::command::{PROGRAM_TIMEOUT, launch};
use nbd_tests::ctl::{ctl, program, require_machine};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::fio::Area;
use nbd_tests::process::signal;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;
/// Behind the area that the load uses.
const MINE: u64 = 6 * MIB;

kernel_tests!(
    a_request_that_crashes_three_backends_gets_eio_and_the_others_do_not,
    poison_limit_0_fails_no_request,
    later_holders_know_the_failed_requests,
);

fn image(directory: &TempDir) -> (String, Vec<u8>) {
    let path = directory.path().join("disk.img");
    let noise = Random::by_clock().bytes(8 * MIB as usize);
    fs::write(&path, &noise).expect("an image");
    (path.display().to_string(), noise)
}

/// A backend with a planted assertion. It does not look for the names of its functions each time
/// that it dies: in the machine's slow memory this takes it six seconds.
fn crasher(arguments: &[&str]) -> Vec<String> {
    let program = program("examples/crasher");
    let command = ["--", "env", "RUST_BACKTRACE=0", &program].into_iter();
    command.chain(arguments.iter().copied()).map(str::to_owned).collect()
}

/// The same without the assertion takes over.
#[track_caller]
fn replace_by_harmless(device: &Device, image: &str) {
    let command = ["replace".into(), device.name()].into_iter();
    ctl(command.chain(crasher(&[image]))).succeeds();
}

/// Reads the block with the planted assertion.
#[track_caller]
fn read_mine(device: &Path) -> Vec<u8> {
    disk::read(device, MINE, 4096)
}

/// Waits until many more reads are answered.
#[track_caller]
fn answers_more(device: &Device) {
    let before = device.status().totals.reads;
    wait_until("answers", EVENT_TIMEOUT, || device.status().totals.reads > before + 64);
}

fn a_request_that_crashes_three_backends_gets_eio_and_the_others_do_not(api: Api) {
    let directory = TempDir::new();
    let (image, noise) = image(&directory);
    let offset = MINE.to_string();
    let device = Device::attach(api, crasher(&[&image, &offset]));
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let mut load = area.start_verified();
    answers_more(&device);

    let read = disk::start_read(&path, MINE).finish(PROGRAM_TIMEOUT);
    assert!(read.stderr.contains("Input/output error"), "{read:?}");
    let status = device.wait_running();
    let [poison] = &status.poisoned[..] else {
        panic!("one request is given up: {:?}", status.poisoned);
    };
    assert_eq!(
        (poison.command.as_str(), poison.offset, poison.length, poison.crashes),
        ("read", MINE, 4096, 3)
    );
    assert!(poison.cause.contains("SIGABRT"), "{poison:?}");
    assert_eq!(status.backend.restarts, 3, "one for each crash");
    let shown = ctl(["status", &device.name()]).succeeds().stdout;
    let line = format!("given up   read {MINE}+4096: answered with EIO");
    assert!(shown.contains(&line), "{shown}");

    // The others have met no error, and go on.
    answers_more(&device);
    load.goes_on();
    let report = load.stop().is_good();
    assert!(report.reads > 0 && report.writes > 0);
    area.check();

    // The bug is mended while the device stays.
    replace_by_harmless(&device, &image);
    assert_eq!(read_mine(&path), noise[MINE as usize..][..4096]);
    device.detach();
}

fn poison_limit_0_fails_no_request(api: Api) {
    let directory = TempDir::new();
    let (image, noise) = image(&directory);
    let offset = MINE.to_string();
    let options = ["--poison-limit", "0", "--restart-limit", "4"].map(str::to_owned);
    let program = crasher(&[&image, &offset]);
    let device = Device::attach(api, options.into_iter().chain(program));
    let read = disk::start_read(&device.path(), MINE);
    // Until the holder has had enough of restarting, and the request waits.
    wait_until("the backend is down", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Down
    });
    let status = device.status();
    assert_eq!(status.poisoned, []);
    let [waiting] = &status.in_flight[..] else {
        panic!("one request waits: {:?}", status.in_flight);
    };
    assert!(waiting.crashes >= 4, "{waiting:?}");

    replace_by_harmless(&device, &image);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    assert_eq!(read_mine(&device.path()), noise[MINE as usize..][..4096]);
    device.detach();
}

/// Attaches with a holder that is told to log errors only.
#[track_caller]
fn attach_quietly(api: Api, files: &TempDir, backend: Vec<String>) -> Device {
    require_machine();
    let holder = files.join("holder");
    let text =
        format!("#!/bin/sh\nexec {} --log-level error \"$@\"\n", program("nbd-kernel-holder"));
    fs::write(&holder, text).expect("a program");
    fs::set_permissions(&holder, fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut command = Command::new(program("nbd-ctl"));
    command.args(["attach", "--kernel-api", api.name()]).args(backend);
    command.env("NBD_HOLDER_PROGRAM", holder);
    Device::printed_by(&launch(command).finish(PROGRAM_TIMEOUT).succeeds())
}

fn later_holders_know_the_failed_requests(api: Api) {
    let directory = TempDir::new();
    let (image, _) = image(&directory);
    let offset = MINE.to_string();
    let device = attach_quietly(api, &directory, crasher(&[&image, &offset]));
    let read = disk::start_read(&device.path(), MINE).finish(PROGRAM_TIMEOUT);
    assert!(read.stderr.contains("Input/output error"), "{read:?}");
    let first = device.wait_running();
    let known = |status: Status| {
        let [poison] = &status.poisoned[..] else {
            panic!("one request was given up: {:?}", status.poisoned);
        };
        let recovery = status.last_recovery.expect("a backend was lost");
        (poison.offset, poison.crashes, poison.cause.clone(), recovery.cause, recovery.ready_ms)
    };
    let expected = known(first.clone());

    ctl(["upgrade", &device.name()]).succeeds();
    assert_eq!(known(device.status()), expected, "the holder is another program");

    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    let (status, words) = device.status_and_words();
    words.says(&["adopted"]);
    assert_ne!(status.holder_pid, first.holder_pid);
    assert_eq!(known(status), expected, "the holder is another process");

    let log = device.log();
    assert!(log.contains("is answered with EIO"), "{log}");
    assert!(!log.contains("its holder (pid"), "no more is logged than before: {log}");
    device.detach();
}
