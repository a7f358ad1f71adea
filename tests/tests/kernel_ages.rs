//! Since when requests wait: known before the first status.

use std::time::{Duration, Instant};

use nbd_control::status::{RequestStatus, Stage};
use nbd_tests::command::{PROGRAM_TIMEOUT, Running};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::process::signal;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

const MIB: u64 = 1 << 20;
/// How long requests wait before anybody looks.
const REQUEST_AGE: Duration = Duration::from_secs(8);
/// What is to be known of it at least; a machine may let a holder be late by the rest.
const MIN_KNOWN_AGE_MS: u64 = 4000;

kernel_tests!(
    a_request_that_a_stopped_backend_has_not_read_has_its_age,
    a_request_that_comes_to_a_stuck_device_has_its_age,
    a_request_without_a_backend_has_its_age_and_keeps_it,
    ages_survive_the_holder,
    ages_survive_an_upgrade,
);

fn attach(api: Api) -> (TempDir, Device) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    (files, device)
}

fn inflight(device: &Device) -> u64 {
    let path = format!("/sys/block/{}/inflight", device.name());
    let text = std::fs::read_to_string(path).expect("inflight");
    text.split_ascii_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// A read that the driver has sent, and when it was seen.
fn read_that_waits(device: &Device, offset: u64) -> (Running, Instant) {
    let before = inflight(device);
    let read = disk::start_read(&device.path(), offset);
    wait_until("a request in flight", EVENT_TIMEOUT, || inflight(device) > before);
    (read, Instant::now())
}

/// Not a word to the holder meanwhile: to ask for a status is to look.
fn nobody_looks(since: Instant) {
    std::thread::sleep(REQUEST_AGE.saturating_sub(since.elapsed()));
}

fn request_at(device: &Device, offset: u64) -> RequestStatus {
    let found = device.status().in_flight.into_iter().find(|request| request.offset == offset);
    found.expect("the request in flight")
}

#[track_caller]
fn is_known(request: &RequestStatus) {
    assert!(request.age_ms >= MIN_KNOWN_AGE_MS, "it has waited for longer: {request:?}");
}

fn a_request_that_a_stopped_backend_has_not_read_has_its_age(api: Api) {
    let (_files, device) = attach(api);
    device.signal_backend(SIGSTOP);
    let (read, since) = read_that_waits(&device, 0);
    nobody_looks(since);
    let request = request_at(&device, 0);
    assert_eq!(request.stage, Stage::Unread);
    is_known(&request);
    let metrics = ctl(["metrics"]).succeeds().stdout;
    let oldest = metrics.lines().find_map(|line| {
        let line = line.strip_prefix("nbd_oldest_request_seconds")?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    });
    assert!(
        oldest.is_some_and(|seconds| seconds * 1000.0 >= MIN_KNOWN_AGE_MS as f64),
        "{oldest:?}"
    );
    device.signal_backend(SIGCONT);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    // And nothing of it is left for those that come then.
    device.signal_backend(SIGSTOP);
    let begun = Instant::now();
    let (read, _) = read_that_waits(&device, 4096);
    let young = request_at(&device, 4096);
    assert!(u128::from(young.age_ms) <= begun.elapsed().as_millis(), "{young:?}");
    device.signal_backend(SIGCONT);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    device.detach();
}

fn a_request_that_comes_to_a_stuck_device_has_its_age(api: Api) {
    let (_files, device) = attach(api);
    device.signal_backend(SIGSTOP);
    let (first, _) = read_that_waits(&device, 0);
    std::thread::sleep(Duration::from_secs(3));
    let (second, since) = read_that_waits(&device, 8192);
    nobody_looks(since);
    is_known(&request_at(&device, 8192));
    let (older, younger) = (request_at(&device, 0), request_at(&device, 8192));
    assert!(older.age_ms > younger.age_ms, "{older:?} {younger:?}");
    device.signal_backend(SIGCONT);
    for read in [first, second] {
        read.finish(PROGRAM_TIMEOUT).succeeds();
    }
    device.detach();
}

/// The successor stops in a debugger or is slow: what it has just taken from the socket is as old
/// as before.
fn a_request_without_a_backend_has_its_age_and_keeps_it(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let device = Device::attach(api, [&spec]);
    let slow = format!("delay:read=60s@{spec}");
    ctl(["replace", &device.name(), &slow]).succeeds();
    ctl(["pause", &device.name()]).succeeds();
    let (read, since) = read_that_waits(&device, 16384);
    nobody_looks(since);
    ctl(["resume", &device.name()]).succeeds();
    let taken = wait_for("a backend that has taken it", EVENT_TIMEOUT, || {
        let mut requests = device.status().in_flight.into_iter();
        requests.find(|request| request.offset == 16384 && request.stage != Stage::Unread)
    });
    is_known(&taken);
    ctl(["replace", &device.name(), &spec]).succeeds();
    read.finish(PROGRAM_TIMEOUT).succeeds();
    device.detach();
}

fn ages_survive_the_holder(api: Api) {
    let (_files, device) = attach(api);
    device.signal_backend(SIGSTOP);
    let (read, since) = read_that_waits(&device, 0);
    nobody_looks(since);
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("its death", EVENT_TIMEOUT, || !holder.is_alive());
    ctl(["adopt", &device.name()]).succeeds();
    is_known(&request_at(&device, 0));
    device.signal_backend(SIGCONT);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    assert_eq!(block_attribute(&device.name(), "size").map(|size| size * 512), Some(MIB));
    device.detach();
}

fn ages_survive_an_upgrade(api: Api) {
    let (_files, device) = attach(api);
    device.signal_backend(SIGSTOP);
    let (read, since) = read_that_waits(&device, 0);
    nobody_looks(since);
    ctl(["upgrade", &device.name()]).succeeds();
    is_known(&request_at(&device, 0));
    device.signal_backend(SIGCONT);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    device.detach();
}
