//! What a device's processes take while nobody uses it: memory, and no time at all.

use std::time::Duration;

use nbd_control::status::Status;
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::process::{self, Memory};
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests, report};

const MIB: u64 = 1 << 20;
const MAX_HOLDER_AND_SITTER_KIB: u64 = 6 * 1024;
const MAX_BACKEND_KIB: u64 = 8 * 1024;
/// How long nothing may happen.
const IDLE_TIME: Duration = Duration::from_secs(5);

kernel_tests!(
    holder_sitter_and_idle_backend_are_small,
    all_memory_that_io_needs_is_locked,
    an_idle_device_never_wakes_up,
);

fn holder_sitter_and_idle_backend_are_small(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 64 * MIB)]);
    let status = device.status();
    let backend = status.backend.pid.expect("a backend");
    wait_until("the spare has started", EVENT_TIMEOUT, || {
        spares(&status).iter().any(|pid| is_idle(*pid))
    });
    let [holder, sitter, serve] = [status.holder_pid, status.sitter_pid, backend].map(Memory::of);
    let spares: Vec<_> = spares(&status).into_iter().map(Memory::of).collect();
    let spare = spares.iter().map(|spare| spare.pss).sum::<u64>();
    report(&format!(
        "{}: KiB resident (and their share): holder {} ({}), sitter {} ({}), nbd-serve {} ({}), \
         its spare's share {spare}",
        api.name(),
        holder.rss,
        holder.pss,
        sitter.rss,
        sitter.pss,
        serve.rss,
        serve.pss,
    ));
    // The program is there once, however many run it.
    assert!(holder.pss + sitter.pss < MAX_HOLDER_AND_SITTER_KIB);
    assert!(serve.rss < MAX_BACKEND_KIB);
    assert!(serve.pss + spare < MAX_BACKEND_KIB);
    device.detach();
}

/// What the holder has started besides sitter and backend.
fn spares(status: &Status) -> Vec<i32> {
    let others = [Some(status.sitter_pid), status.backend.pid];
    let children = process::children(status.holder_pid).into_iter();
    children.filter(|pid| !others.contains(&Some(*pid))).collect()
}

fn is_idle(pid: i32) -> bool {
    nbd_control::process::stat(pid).is_some_and(|stat| stat.state == 'S')
}

/// Writeback may have to wait for these processes, so none of their memory may have to wait for
/// writeback: nothing of it can be paged out.
fn all_memory_that_io_needs_is_locked(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    disk::write(&device.path(), 0, &[7; 4096]);
    let status = device.status();
    let locked = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let line = text.lines().find(|line| line.starts_with("VmLck:"));
        let number = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
        number.unwrap_or(0u64)
    };
    for pid in [status.holder_pid, status.backend.pid.expect("a backend")] {
        let (locked, resident) = (locked(pid), Memory::of(pid).rss);
        assert!(locked > resident / 2, "{pid}: {locked} of {resident} KiB");
    }
    device.detach();
}

/// No timer ticks anywhere: none of its threads is scheduled a single time.
fn an_idle_device_never_wakes_up(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    disk::write(&device.path(), 0, &[7; 4096]);
    let status = device.status();
    wait_until("the spare has started", EVENT_TIMEOUT, || {
        spares(&status).iter().any(|pid| is_idle(*pid))
    });
    let all = || {
        let mut pids = process::children(status.holder_pid);
        pids.push(status.holder_pid);
        pids.into_iter().map(|pid| (pid, process::switches(pid))).collect::<Vec<_>>()
    };
    // Those who look at a new device may take a while to leave it alone.
    let mut before = all();
    wait_until("five seconds in which nothing happens", EVENT_TIMEOUT, || {
        std::thread::sleep(IDLE_TIME);
        let now = all();
        std::mem::replace(&mut before, now.clone()) == now
    });
    report(&format!("{}: {} processes idle for {IDLE_TIME:?}", api.name(), before.len()));
    device.detach();
}
