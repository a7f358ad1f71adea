//! The holder dies: I/O goes on without it, and the next command makes another one.

use nbd_control::status::BackendState;
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::fio::Area;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests, report};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;

kernel_tests!(
    io_survives_the_holder_and_the_next_command_adopts_the_device,
    holder_and_backend_die_together_and_io_waits_for_the_next_command,
    a_live_holder_is_not_replaced,
);

/// Kills the holder and waits until it is gone.
fn kill_holder(device: &Device) -> i32 {
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    holder.pid
}

fn io_survives_the_holder_and_the_next_command_adopts_the_device(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 32 * MIB)]);
    let path = device.path();
    let area = Area::of_device(&path, 8 * MIB);
    area.fill();
    let mut fio = area.start_verified();
    device.wait_progress();
    let backend = device.backend();
    let timeout = device.io_timeout();

    let first = kill_holder(&device);
    device.wait_progress();
    // Those who only look at everything change nothing.
    let list = ctl(["list", "--json"]).succeeds();
    assert!(list.stdout.contains("\"orphaned\""), "{}", list.stdout);
    list.says(&["adopt"]);
    device.wait_progress();

    let (status, output) = device.status_and_words();
    output.says(&["adopted by"]);
    assert_ne!(status.holder_pid, first);
    assert_eq!(status.backend.state, BackendState::Running);
    assert_eq!(status.backend.pid, Some(backend), "it is the same backend");
    assert_eq!(device.io_timeout(), timeout);
    device.wait_progress();

    // The new holder knows its business.
    assert!(signal(backend, SIGKILL));
    wait_until("another backend", EVENT_TIMEOUT, || {
        let now = device.status().backend;
        now.state == BackendState::Running && now.pid != Some(backend)
    });
    device.wait_progress();
    fio.goes_on();
    let result = fio.stop().is_good();
    area.check();
    log.has_no_complaints();
    device.detach();
    report(&format!(
        "{}: {} reads and {} writes, longest wait {:.0} ms",
        api.name(),
        result.reads,
        result.writes,
        result.longest
    ));
}

fn holder_and_backend_die_together_and_io_waits_for_the_next_command(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 32 * MIB)]);
    let path = device.path();
    let area = Area::of_device(&path, 8 * MIB);
    area.fill();
    let mut fio = area.start_verified();
    device.wait_progress();

    let before = device.state().expect("a state");
    let backend = before.backend.expect("a backend");
    let holder = kill_holder(&device);
    assert!(signal(backend.pid, SIGKILL));
    wait_until("the death of the backend", EVENT_TIMEOUT, || !backend.is_alive());
    let list = ctl(["list"]).succeeds();
    list.says(&[&device.name(), "adopt"]);

    let (status, output) = device.status_and_words();
    output.says(&["adopted by"]);
    assert_ne!(status.holder_pid, holder);
    let status = device.wait_running();
    assert_ne!(status.backend.pid, Some(backend.pid));
    assert!(status.last_recovery.is_some());
    device.wait_progress();

    // Nothing that the first holder knew is forgotten by the third.
    kill_holder(&device);
    ctl(["adopt", &device.name()]).succeeds();
    let after = device.state().expect("a state");
    assert_eq!(after.program, before.program);
    assert_eq!(after.export, before.export);
    assert_eq!(after.io_timeout, before.io_timeout);
    device.wait_progress();
    fio.goes_on();
    fio.stop().is_good();
    area.check();
    log.has_no_complaints();
    device.detach();
}

fn a_live_holder_is_not_replaced(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let before = device.status();
    let refused = ctl(["adopt", &device.name()]).fails_with(4);
    refused.says(&[&before.holder_pid.to_string(), "is alive"]);
    assert_eq!(device.status().holder_pid, before.holder_pid);
    device.detach();
}
