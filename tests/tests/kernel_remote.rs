//! Devices in front of other servers, which are killed while fio must not notice.

use std::fs;
use std::path::Path;

use nbd_tests::device::Device;
use nbd_tests::fio::Area;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::killer::{self, Killer};
use nbd_tests::nbdkit::Nbdkit;
use nbd_tests::process;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests, report};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
/// Killed servers.
const KILLS: usize = 10;
/// Killed programs that nbd-serve has started.
const PROGRAMS: usize = 5;
/// Backends killed meanwhile.
const BACKENDS: usize = 10;

kernel_tests!(
    fio_verifies_while_the_server_is_killed_ten_times,
    fio_verifies_while_server_and_backend_are_killed,
    fio_verifies_while_a_program_that_was_started_is_killed,
    a_stopped_server_does_not_hold_up_a_detach_by_force,
    a_stopped_server_is_waited_for_though_holder_and_backend_die,
);

fn fio_verifies_while_the_server_is_killed_ten_times(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let disk = files.image("disk.img", 64 * MIB);
    let mut server = Nbdkit::start(&files.join("socket"), &disk);
    let device = Device::attach(api, [format!("{}&connections=2", server.uri())]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let fio = area.start_verified();
    for _ in 0..KILLS {
        device.wait_progress();
        server = server.replace(&disk);
    }
    device.wait_progress();
    let result = fio.stop().is_good();
    area.check();
    let status = device.status();
    assert_eq!((status.totals.errors, status.backend.restarts), (0, 0));
    log.has_no_complaints();
    let lost = device.log().matches("connection lost").count();
    assert!(lost >= KILLS, "it noticed only {lost}");
    device.detach();
    drop(server);
    report(&format!("{}: {KILLS} servers killed, {result:?}", api.name()));
}

fn fio_verifies_while_server_and_backend_are_killed(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let disk = files.image("disk.img", 64 * MIB);
    let mut server = Nbdkit::start(&files.join("socket"), &disk);
    let device = Device::attach(api, [format!("{}&connections=2", server.uri())]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let fio = area.start_verified();
    let killer = Killer::start(&device, 50..=300);
    let mut servers = 0;
    while servers < KILLS || killer.count() < BACKENDS {
        device.wait_progress();
        server = server.replace(&disk);
        servers += 1;
    }
    let killed = killer.stop();
    device.wait_running();
    device.wait_progress();
    let result = fio.stop().is_good();
    area.check();
    killer::check_restarts(&device, killed.len());
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    drop(server);
    let backends = killed.len();
    report(&format!("{}: {servers} servers, {backends} backends killed, {result:?}", api.name()));
}

fn fio_verifies_while_a_program_that_was_started_is_killed(api: Api) {
    let files = TempDir::new();
    let disk = files.image("disk.img", 64 * MIB);
    let pid_file = files.join("pid");
    let (pid_path, disk) = (pid_file.display(), disk.display());
    let device = Device::attach(api, [format!("exec:nbdkit -s -P {pid_path} file {disk}")]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let fio = area.start_verified();
    for _ in 0..PROGRAMS {
        device.wait_progress();
        let pid = pid_in(&pid_file).expect("a pid");
        assert!(process::signal(pid, Signal::SIGKILL));
        wait_until("another server", EVENT_TIMEOUT, || {
            pid_in(&pid_file).is_some_and(|new| new != pid)
        });
    }
    device.wait_progress();
    fio.stop().is_good();
    area.check();
    let server = pid_in(&pid_file).expect("a pid");
    // It ends with its device.
    device.detach();
    wait_until("the end of the server", EVENT_TIMEOUT, || process::is_dead(server));
}

fn pid_in(path: &Path) -> Option<i32> {
    // It may just be written.
    fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse().ok()
}

fn a_stopped_server_is_waited_for_though_holder_and_backend_die(api: Api) {
    let files = TempDir::new();
    let disk = files.image("disk.img", 64 * MIB);
    let server = Nbdkit::start(&files.join("socket"), &disk);
    let device = Device::attach(api, [server.uri()]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let fio = area.start_verified();
    device.wait_progress();
    assert!(process::signal(server.pid(), Signal::SIGSTOP));
    // The connection is with the sitter now. A successor finds it there, and waits for the server
    // to let go.
    let holder = device.state().expect("a state").holder;
    assert!(process::signal(holder.pid, Signal::SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    device.signal_backend(Signal::SIGKILL);
    device.status_and_words().1.says(&["adopted by"]);
    device.wait_running();
    wait_until("requests that wait", EVENT_TIMEOUT, || !device.status().in_flight.is_empty());
    wait_until("the reason why they do", EVENT_TIMEOUT, || {
        device.log().contains("the server has not closed the old connection")
    });
    assert!(process::signal(server.pid(), Signal::SIGCONT));
    device.wait_progress();
    fio.stop().is_good();
    area.check();
    assert_eq!(device.status().totals.errors, 0);
    device.detach();
    drop(server);
}

fn a_stopped_server_does_not_hold_up_a_detach_by_force(api: Api) {
    let files = TempDir::new();
    let disk = files.image("disk.img", 64 * MIB);
    let server = Nbdkit::start(&files.join("socket"), &disk);
    let device = Device::attach(api, [server.uri()]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    let fio = area.start_verified();
    device.wait_progress();
    assert!(process::signal(server.pid(), Signal::SIGSTOP));
    wait_until("requests that wait", EVENT_TIMEOUT, || !device.status().in_flight.is_empty());
    // Panics if anything is left.
    device.detach_by_force();
    fio.ends().is_bad();
    drop(server);
}
