//! What is under the export fails: full, broken, or silent.

use std::fs;
use std::path::Path;

use nbd_control::status::Stage;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, start};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::mount::Mount;
use nbd_tests::temp::TempDir;
use nbd_tests::under::{UNDER, Under};
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};

const MIB: u64 = 1 << 20;

kernel_tests!(
    a_full_disk_fails_the_write_and_nothing_else,
    an_io_error_below_is_an_io_error_above_and_passes,
    a_read_that_blocks_for_ever_holds_up_no_detach,
);

fn write_block(device: &Path, block: u64) -> Running {
    let words = [format!("of={}", device.display()), format!("seek={block}")];
    let options = ["if=/dev/zero", "oflag=direct", "bs=64k", "count=1", "conv=notrunc"];
    start("dd", words.iter().map(String::as_str).chain(options))
}

fn a_full_disk_fails_the_write_and_nothing_else(api: Api) {
    let files = TempDir::new();
    let place = files.join("full");
    let mount = Mount::of_memory("size=2M", &place);
    let ballast = place.join("ballast");
    let spec = format!("file:{},create=4M", place.join("disk.img").display());
    let device = Device::attach(api, [spec]);
    fs::write(&ballast, vec![1; MIB as usize * 3 / 2]).expect("ballast");
    let path = device.path();
    // Each block needs room of its own: 8 there are.
    let blocks: Vec<i32> =
        (0..12).map(|at| write_block(&path, at).finish(PROGRAM_TIMEOUT).code).collect();
    assert!(blocks.contains(&0) && blocks.contains(&1), "{blocks:?}");
    disk::read_all(&path);
    let backend = device.wait_running().backend;
    assert_eq!(backend.restarts, 0, "a full disk is no reason to crash");
    fs::remove_file(ballast).expect("ballast to remove");
    for at in 0..12 {
        write_block(&path, at).finish(PROGRAM_TIMEOUT).succeeds();
    }
    device.detach();
    mount.unmount();
}

fn an_io_error_below_is_an_io_error_above_and_passes(api: Api) {
    let files = TempDir::new();
    let under = Under::new(&files);
    let device = Device::attach(api, [format!("file:{UNDER},direct")]);
    let path = device.path();
    disk::read_all(&path);
    fs::write(&under.broken, "").expect("a trigger");
    let read = disk::start_read(&path, 0).finish(PROGRAM_TIMEOUT).fails_with(1);
    read.says(&["Input/output error"]);
    let write = write_block(&path, 1).finish(PROGRAM_TIMEOUT).fails_with(1);
    write.says(&["Input/output error"]);
    let status = device.wait_running();
    assert_eq!(status.backend.restarts, 0, "an error below is no reason to crash");
    assert!(status.totals.errors >= 2);
    fs::remove_file(&under.broken).expect("a trigger to remove");
    write_block(&path, 1).finish(PROGRAM_TIMEOUT).succeeds();
    disk::read_all(&path);
    device.detach();
    under.end();
}

/// Waits until `nbd-ctl why` says so, by a word and in words.
#[track_caller]
fn wait_verdict(name: &str, verdict: &str, words: &str) {
    let mut told = serde_json::Value::Null;
    wait_until(verdict, EVENT_TIMEOUT, || {
        let output = ctl(["why", name, "--json"]).succeeds().stdout;
        told = serde_json::from_str(&output).expect("JSON");
        told["verdict"] == verdict
    });
    assert!(told["cause"].as_str().is_some_and(|cause| cause.contains(words)), "{told}");
}

/// Its thread sleeps in the kernel, where not even SIGKILL reaches it.
fn a_read_that_blocks_for_ever_holds_up_no_detach(api: Api) {
    let files = TempDir::new();
    let under = Under::new(&files);
    let device = Device::attach(api, ["--no-spare", &format!("file:{UNDER},direct")]);
    let processes = device.processes();
    under.nbdkit.signal(SIGSTOP);
    let read = disk::start_read(&device.path(), MIB);
    wait_until("a read that is executed", EVENT_TIMEOUT, || {
        let status = device.status();
        status.in_flight.iter().any(|read| read.stage == Stage::Executing)
    });
    let name = device.name();
    wait_verdict(&name, "blocked", "waits in the kernel for its own storage");
    ctl(["pause", &name, "--timeout", "1"]).fails_with(5);
    wait_verdict(&name, "fencing", "until then no other backend may serve");
    ctl(["detach", &name]).fails_with(4).says(&["opened by dd", "--force"]);
    ctl(["detach", "--force", &name]).succeeds().says(&["failed with EIO"]);
    read.finish(PROGRAM_TIMEOUT).fails_with(1).says(&["Input/output error"]);
    under.nbdkit.signal(SIGCONT);
    device.has_left_nothing(&processes);
    drop(device);
    under.end();
}
