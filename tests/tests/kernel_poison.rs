//! A request that crashes its backends is given up alone.

use std::fs;
use std::path::Path;

use nbd_control::status::BackendState;
use nbd_tests::command::LIMIT;
use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::fio::Area;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{LONG, wait_until};
use nbd_tests::{Api, kernel_tests};

const MIB: u64 = 1 << 20;
/// Behind the area that the load uses.
const MINE: u64 = 6 * MIB;

kernel_tests!(
    a_request_that_crashes_three_backends_gets_eio_and_the_others_do_not,
    an_operator_can_want_no_request_to_be_given_up,
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
    wait_until("answers", LONG, || device.status().totals.reads > before + 64);
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

    let read = disk::start_read(&path, MINE).finish(LIMIT);
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

fn an_operator_can_want_no_request_to_be_given_up(api: Api) {
    let directory = TempDir::new();
    let (image, noise) = image(&directory);
    let offset = MINE.to_string();
    let options = ["--poison-limit", "0", "--restart-limit", "4"].map(str::to_owned);
    let program = crasher(&[&image, &offset]);
    let device = Device::attach(api, options.into_iter().chain(program));
    let read = disk::start_read(&device.path(), MINE);
    // Until the holder has had enough of restarting, and the request waits.
    wait_until("the backend is down", LONG, || device.status().backend.state == BackendState::Down);
    let status = device.status();
    assert_eq!(status.poisoned, []);
    let [waiting] = &status.in_flight[..] else {
        panic!("one request waits: {:?}", status.in_flight);
    };
    assert!(waiting.crashes >= 4, "{waiting:?}");

    replace_by_harmless(&device, &image);
    read.finish(LIMIT).succeeds();
    assert_eq!(read_mine(&device.path()), noise[MINE as usize..][..4096]);
    device.detach();
}
