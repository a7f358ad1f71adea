//! What an operator can order: requests are answered with EIO, or wait, and the device stays.

use std::collections::BTreeSet;
use std::path::Path;

use nbd_control::status::{BackendState, Stage};
use nbd_tests::command::{PROGRAM_TIMEOUT, Running};
use nbd_tests::ctl::{ctl, program, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read};
use nbd_tests::fio::Area;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};

const MIB: u64 = 1 << 20;
const READS: u64 = 3;

kernel_tests!(
    fail_answers_waiting_requests_with_eio_and_keeps_the_device,
    fail_kills_a_live_backend_only_with_kill,
    a_paused_device_waits_and_stays_paused_without_its_holder,
    a_paused_device_lets_its_requests_be_failed,
    pause_kills_a_joined_backend_only_with_kill,
    on_backend_loss_fail_fails_requests_until_there_is_a_backend,
    a_lost_stand_in_loses_no_answer_and_gives_none_twice,
);

fn wait_state(device: &Device, state: BackendState) {
    wait_until(&format!("{state:?}"), EVENT_TIMEOUT, || device.status().backend.state == state);
}

fn reads(device: &Device) -> Vec<Running> {
    let reads: Vec<_> = (0..READS).map(|at| start_read(&device.path(), at * MIB)).collect();
    let all = || device.status().in_flight.len() as u64 == READS;
    wait_until("all reads in flight", EVENT_TIMEOUT, all);
    reads
}

#[track_caller]
fn all_fail(reads: Vec<Running>) {
    for read in reads {
        read.finish(PROGRAM_TIMEOUT).fails_with(1).says(&["Input/output error"]);
    }
}

/// A device whose backend is dead and stays it.
fn abandoned(api: Api, options: &[&str], files: &TempDir) -> Device {
    let spec = files.spec("disk.img", 8 * MIB);
    let device = Device::attach(api, [options, &["--restart", "never", &spec]].concat());
    device.signal_backend(SIGKILL);
    device
}

/// Writes and reads, so that a flush that was held to have failed would show.
#[track_caller]
fn works(device: &Path) {
    let text = vec![b'w'; MIB as usize];
    disk::write(device, MIB, &text);
    assert_eq!(disk::read(device, MIB, MIB), text);
}

fn fail_answers_waiting_requests_with_eio_and_keeps_the_device(api: Api) {
    let files = TempDir::new();
    let device = abandoned(api, &[], &files);
    wait_state(&device, BackendState::Waiting);
    ctl(["fail", &device.name()]).succeeds().says(&["nothing is in flight"]);
    let waiting = reads(&device);
    ctl(["fail", &device.name()]).succeeds().says(&["3 requests were answered with EIO"]);
    all_fail(waiting);
    let status = device.status();
    assert_eq!(status.backend.state, BackendState::Waiting);
    assert_eq!((status.in_flight.len(), status.totals.errors), (0, READS));

    // Later ones wait again.
    let later = reads(&device);
    ctl(["restart", &device.name()]).succeeds();
    for read in later {
        read.finish(PROGRAM_TIMEOUT).succeeds();
    }
    works(&device.path());
    let status = device.status();
    assert_eq!((status.totals.errors, status.backend.restarts), (READS, 1));
    let recovery = status.last_recovery.expect("a loss");
    assert!(recovery.ready_ms.is_some(), "{recovery:?}");
    device.detach();
}

fn fail_kills_a_live_backend_only_with_kill(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let path = device.path();
    device.signal_backend(SIGSTOP);
    let waiting = reads(&device);
    // A flush is among them.
    let source = files.join("block");
    std::fs::write(&source, [b'f'; 4096]).expect("a file");
    let words = [format!("if={}", source.display()), format!("of={}", path.display())];
    let flushed = ["oflag=direct", "conv=notrunc,fsync", "seek=1024", "bs=4096"];
    let flush = nbd_tests::command::start("dd", words.iter().map(String::as_str).chain(flushed));
    wait_until("the write", EVENT_TIMEOUT, || device.status().in_flight.len() as u64 > READS);

    let refused = ctl(["fail", &device.name()]).fails_with(4);
    refused.says(&["alive, stopped", "fail --kill"]);
    assert_eq!(device.status().in_flight.len() as u64, READS + 1, "nothing has changed");
    ctl(["fail", "--kill", &device.name()]).succeeds().says(&["answered with EIO"]);
    all_fail(waiting);
    assert_ne!(flush.finish(PROGRAM_TIMEOUT).code, 0);
    device.wait_running();
    works(&path);
    device.detach();
}

fn a_paused_device_waits_and_stays_paused_without_its_holder(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 16 * MIB)]);
    let path = device.path();
    let area = Area::of_device(&path, 8 * MIB);
    area.fill();
    let mut load = area.start_verified();
    device.wait_progress();
    let backend = device.backend();
    for again in [false, true] {
        let paused = ctl(["pause", &device.name()]).succeeds();
        paused.says(&["is paused", "nbd-ctl resume"]);
        assert!(nbd_control::process::is_dead(backend) || again, "its end was waited for");
        let status = device.status();
        assert_eq!((status.backend.state, status.backend.pid), (BackendState::Paused, None));
        assert!(status.backend.detail.contains("resume"));
        ctl(["restart", &device.name()]).fails_with(4).says(&["is paused"]);
        if again {
            let holder = device.state().expect("a state").holder;
            assert!(signal(holder.pid, SIGKILL));
            wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
            assert_eq!(device.status().backend.state, BackendState::Paused, "adopted");
        }
        let before = device.completed();
        let waiting = start_read(&path, 12 * MIB);
        wait_until("it waits", EVENT_TIMEOUT, || {
            let all = device.status().in_flight;
            all.iter().any(|one| one.offset == 12 * MIB && one.stage == Stage::Unread)
        });
        assert_eq!(device.completed(), before, "nothing is served");
        ctl(["resume", &device.name()]).succeeds().says(&["is served by process"]);
        waiting.finish(PROGRAM_TIMEOUT).succeeds();
        device.wait_progress();
    }
    ctl(["resume", &device.name()]).fails_with(4).says(&["is not paused"]);
    load.goes_on();
    load.stop().is_good();
    area.check();
    log.has_no_complaints();
    device.detach();
}

fn a_paused_device_lets_its_requests_be_failed(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    ctl(["pause", &device.name()]).succeeds();
    let waiting = reads(&device);
    ctl(["fail", &device.name()]).succeeds();
    all_fail(waiting);
    assert_eq!(device.status().backend.state, BackendState::Paused);
    ctl(["resume", &device.name()]).succeeds();
    works(&device.path());
    device.detach();
}

fn pause_kills_a_joined_backend_only_with_kill(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let spec = format!("file:{}", files.join("disk.img").display());
    let joined = |takeover: &[&str]| {
        let name = device.name();
        let words = [&["--join", &*name], takeover, &[&*spec]].concat();
        nbd_tests::command::start(program("nbd-serve"), words)
    };
    let first = joined(&["--takeover"]);
    wait_until("it serves", EVENT_TIMEOUT, || device.backend() == first.pid());
    device.wait_running();
    ctl(["pause", &device.name()]).fails_with(4).says(&["joined by hand", "--kill"]);
    works(&device.path());
    ctl(["pause", "--kill", &device.name()]).succeeds();
    assert_eq!(first.finish(PROGRAM_TIMEOUT).code, 128 + 9);

    // One that joins meanwhile waits for its turn.
    let second = joined(&[]);
    let waiting = reads(&device);
    assert_eq!(device.status().backend.state, BackendState::Paused);
    ctl(["resume", &device.name()]).succeeds();
    for read in waiting {
        read.finish(PROGRAM_TIMEOUT).succeeds();
    }
    works(&device.path());
    device.detach();
    drop(second);
}

fn on_backend_loss_fail_fails_requests_until_there_is_a_backend(api: Api) {
    ctl(["attach", "--on-backend-loss", "perhaps", "mem:1M"]).fails_with(2).says(&["hold", "fail"]);
    let files = TempDir::new();
    let device = abandoned(api, &["--on-backend-loss", "fail:1"], &files);
    let name = device.name();
    let shown = ctl(["status", &name]).succeeds().stdout;
    assert!(shown.contains("fail:1"), "{shown}");
    let read = |at| start_read(&device.path(), at);
    all_fail(vec![read(0), read(MIB), read(2 * MIB)]);
    wait_state(&device, BackendState::Failing);
    ctl(["fail", &name]).succeeds().says(&["already"]);

    // Its holder's death changes nothing but the process that answers.
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    all_fail(vec![read(0)]);
    let _ = device.status();
    all_fail(vec![read(0)]);
    wait_state(&device, BackendState::Failing);

    // A backend that comes back serves what comes then.
    let waited = start_ctl(["wait", &name]);
    ctl(["restart", &name]).succeeds();
    waited.finish(PROGRAM_TIMEOUT).succeeds();
    works(&device.path());
    assert_eq!(device.status().backend.state, BackendState::Running);
    device.detach();
}

/// The EIO backend is killed again and again while it answers. A reply that the driver does not
/// expect would end the connection and leave its words in the kernel's log.
fn a_lost_stand_in_loses_no_answer_and_gives_none_twice(api: Api) {
    let files = TempDir::new();
    let device = abandoned(api, &["--on-backend-loss", "fail:0"], &files);
    let mut log = KernelLog::from_now();
    let mut killed = BTreeSet::new();
    let mut pending: Vec<Running> = Vec::new();
    while killed.len() < 3 {
        pending.extend((0..4).map(|at| start_read(&device.path(), at * MIB)));
        let victim = device.state().and_then(|state| state.backend).map_or(0, |id| id.pid);
        if victim > 1 && signal(victim, SIGKILL) {
            killed.insert(victim);
        }
    }
    all_fail(pending);
    ctl(["restart", &device.name()]).succeeds();
    works(&device.path());
    let complaints = log.complaints();
    let bad = |line: &&String| {
        line.contains("nbd") && !["I/O error", "returned error"].iter().any(|it| line.contains(it))
    };
    assert_eq!(complaints.iter().find(bad), None);
    device.detach();
}
