//! A stopped backend: everybody is told at once, nothing is lost when it continues, and a detach
//! ends all the same.

use std::time::Duration;

use nbd_control::status::{BackendState, Stage, Status};
use nbd_tests::command::{PROGRAM_TIMEOUT, Running};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read};
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for};
use nbd_tests::{Api, kernel_tests, report};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};

const MIB: u64 = 1 << 20;
const READS: u64 = 3;

kernel_tests!(
    status_shows_waiting_reads_and_they_complete_when_the_backend_continues,
    detach_by_force_ends_the_reads_of_a_stopped_backend,
    detach_gives_up_on_a_stopped_backend_and_changes_nothing,
    a_stopped_backend_that_is_killed_is_replaced,
);

/// Stops the backend and starts direct reads, each of one block and from another MiB.
fn stop_with_reads(device: &Device) -> Vec<Running> {
    device.signal_backend(SIGSTOP);
    let starts = (0..READS).map(|at| start_read(&device.path(), at * MIB));
    starts.collect()
}

/// Waits until the status shows all reads, checks it, and hands it out.
fn status_with_reads(device: &Device) -> Status {
    let status = wait_for("all reads in the status", EVENT_TIMEOUT, || {
        let status = device.status();
        (status.in_flight.len() as u64 == READS).then_some(status)
    });
    assert_eq!(status.backend.state, BackendState::Stopped);
    assert_eq!(status.backend.process_state, Some('T'));
    let mut offsets: Vec<_> = status.in_flight.iter().map(|read| read.offset).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, [0, MIB, 2 * MIB]);
    for read in &status.in_flight {
        assert_eq!((read.command.as_str(), read.length), ("read", 4096));
        assert_eq!(read.stage, Stage::Unread);
    }
    status
}

fn status_shows_waiting_reads_and_they_complete_when_the_backend_continues(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    let backend = device.backend();
    let reads = stop_with_reads(&device);

    let mut before = status_with_reads(&device);
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        let (status, output) = device.status_and_words();
        fastest = fastest.min(output.took);
        assert_eq!(status.in_flight.len() as u64, READS);
        for younger in &before.in_flight {
            let same = status.in_flight.iter().find(|read| read.cookie == younger.cookie);
            let older = same.expect("a read that still waits");
            assert!(older.age_ms >= younger.age_ms + 300, "{older:?} {younger:?}");
        }
        before = status;
    }
    let table = ctl(["status", &device.name()]).succeeds().stdout;
    assert!(table.contains("stopped") && table.contains("read"), "{table}");
    ctl(["list"]).succeeds();

    device.signal_backend(SIGCONT);
    for read in reads {
        read.finish(PROGRAM_TIMEOUT).succeeds();
    }
    let status = device.wait_running();
    assert_eq!(status.backend.pid, Some(backend));
    assert_eq!((status.backend.restarts, status.totals.errors), (0, 0));
    assert!(status.in_flight.is_empty());
    log.has_no_complaints();
    device.detach();
    report(&format!("{}: status with reads waiting took {} ms", api.name(), fastest.as_millis()));
}

fn detach_by_force_ends_the_reads_of_a_stopped_backend(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    let reads = stop_with_reads(&device);
    status_with_reads(&device);

    let refused = ctl(["detach", &device.name()]).fails_with(4);
    refused.says(&["opened by dd", "--force"]);
    let forced = device.detach_by_force();
    let took = forced.took;
    forced.says(&["3 requests in flight", "EIO"]);
    for read in reads {
        let read = read.finish(PROGRAM_TIMEOUT).fails_with(1);
        read.says(&["Input/output error"]);
    }
    report(&format!("{}: detach --force took {} ms", api.name(), took.as_millis()));
}

fn detach_gives_up_on_a_stopped_backend_and_changes_nothing(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    // For the detach to write back.
    let text = vec![b'x'; MIB as usize];
    disk::write_to_cache(&device.path(), 0, &text);
    device.signal_backend(SIGSTOP);
    let refused = ctl(["detach", &device.name()]).fails_with(5);
    refused.says(&["is not detached", "stopped", "--force"]);
    assert_eq!(device.status().backend.state, BackendState::Stopped);

    device.signal_backend(SIGCONT);
    let status = device.wait_running();
    assert_eq!((status.backend.restarts, status.totals.errors), (0, 0));
    device.detach();
    let image = std::fs::read(files.join("disk.img")).expect("the image");
    assert!(image.starts_with(&text));
}

fn a_stopped_backend_that_is_killed_is_replaced(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    let reads = stop_with_reads(&device);
    status_with_reads(&device);
    let backend = device.backend();
    ctl(["restart", &device.name()]).succeeds();
    for read in reads {
        read.finish(PROGRAM_TIMEOUT).succeeds();
    }
    let status = device.wait_running();
    assert_ne!(status.backend.pid, Some(backend));
    assert_eq!(status.backend.restarts, 1);
    disk::read_all(&device.path());
    device.detach();
}
