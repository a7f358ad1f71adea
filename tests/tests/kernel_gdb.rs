//! gdb on a running backend: whoever does I/O waits, nobody sees an error, and gdb itself comes
//! back from whatever it is asked.

use nbd_control::status::{BackendState, Stage, Status};
use nbd_tests::command::{PROGRAM_TIMEOUT, Running};
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read, start_write};
use nbd_tests::fio::Area;
use nbd_tests::gdb::Gdb;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for};
use nbd_tests::{Api, kernel_tests, process};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

kernel_tests!(
    io_waits_at_a_breakpoint_in_the_write_path_and_goes_on_from_there,
    a_debugger_comes_and_goes_under_verified_load,
    a_debugger_that_is_killed_lets_a_stopped_backend_go_on,
    breakpoints_that_a_killed_debugger_left_behind_cost_a_backend_and_no_request,
    a_backend_that_is_killed_under_a_stopped_debugger_is_replaced,
);

/// The system call by which `nbd-serve` writes to a file.
const WRITE_PATH: &str = "pwrite64";

/// Waits until so many requests are in flight, and checks who holds them up.
#[track_caller]
fn held_up_by(gdb: &Gdb, device: &Device, requests: usize) -> Status {
    let status = wait_for("all requests in the status", EVENT_TIMEOUT, || {
        let status = device.status();
        (status.in_flight.len() == requests).then_some(status)
    });
    assert_eq!(status.backend.state, BackendState::Stopped);
    assert_eq!(status.backend.process_state, Some('t'));
    assert_eq!(status.backend.tracer_pid, Some(gdb.pid()));
    status
}

/// Starts a write and waits until gdb stands at the breakpoint in its path.
#[track_caller]
fn break_on_write(gdb: &mut Gdb, device: &Device, files: &TempDir, block: &[u8]) -> Running {
    let answer = gdb.ask(format!("break {WRITE_PATH}"));
    assert!(answer.contains("Breakpoint 1 at"), "{answer}");
    gdb.begin("continue");
    let write = start_write(&device.path(), MIB, &files.join("block"), block);
    let answer = gdb.answer();
    assert!(answer.contains("hit Breakpoint 1"), "{answer}");
    let stack = gdb.ask("backtrace");
    assert!(stack.contains("write_at"), "{stack}");
    write
}

fn io_waits_at_a_breakpoint_in_the_write_path_and_goes_on_from_there(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let backend = device.backend();
    let block = Random::by_clock().bytes(BLOCK);

    let mut gdb = Gdb::attach(backend);
    gdb.begin("continue");
    // Ctrl-C stops it where nothing is in flight.
    gdb.interrupt(backend);
    held_up_by(&gdb, &device, 0);
    let mut write = break_on_write(&mut gdb, &device, &files, &block);
    // More readers and writers come while gdb sits there.
    let another = start_write(&device.path(), 2 * MIB, &files.join("another"), &block);
    let mut read = start_read(&device.path(), 3 * MIB);
    let status = held_up_by(&gdb, &device, 3);
    let executing: Vec<_> =
        status.in_flight.iter().filter(|request| request.stage == Stage::Executing).collect();
    assert_eq!(executing.len(), 1, "{executing:?}");
    assert_eq!((executing[0].command.as_str(), executing[0].offset), ("write", MIB));
    assert!(write.is_running() && read.is_running());
    gdb.ask("info threads");

    // Step by step from there, then on.
    gdb.ask("next");
    assert!(write.is_running());
    gdb.ask("delete");
    gdb.begin("continue");
    for dd in [write, another, read] {
        dd.finish(PROGRAM_TIMEOUT).succeeds();
    }
    // Somebody closes the terminal.
    gdb.kill();

    assert_eq!(disk::read(&device.path(), MIB, BLOCK as u64), block);
    assert_eq!(disk::read(&device.path(), 2 * MIB, BLOCK as u64), block);
    let status = device.wait_running();
    assert_eq!(status.backend.pid, Some(backend));
    assert_eq!((status.backend.restarts, status.totals.errors), (0, 0));
    log.has_no_complaints();
    device.detach();
}

fn a_debugger_comes_and_goes_under_verified_load(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let path = device.path();
    let backend = device.backend();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let mut fio = area.start_verified();
    device.wait_progress();

    let mut gdb = Gdb::attach(backend);
    gdb.ask("thread apply all backtrace");
    gdb.begin("continue");
    device.wait_progress();
    gdb.interrupt(device.backend());
    assert_eq!(device.status().backend.tracer_pid, Some(gdb.pid()));
    // Quitting is enough to let go of it.
    gdb.quit();
    device.wait_progress();

    fio.goes_on();
    fio.stop().is_good();
    area.check();
    let status = device.wait_running();
    assert_eq!((status.backend.pid, status.backend.tracer_pid), (Some(backend), None));
    assert_eq!((status.backend.restarts, status.totals.errors), (0, 0));
    log.has_no_complaints();
    device.detach();
}

fn a_debugger_that_is_killed_lets_a_stopped_backend_go_on(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let backend = device.backend();
    let block = Random::by_clock().bytes(BLOCK);
    let mut gdb = Gdb::attach(backend);
    let write = break_on_write(&mut gdb, &device, &files, &block);
    held_up_by(&gdb, &device, 1);

    gdb.kill();
    write.finish(PROGRAM_TIMEOUT).succeeds();
    assert_eq!(disk::read(&device.path(), MIB, BLOCK as u64), block);
    let status = device.wait_running();
    assert_eq!((status.backend.pid, status.backend.tracer_pid), (Some(backend), None));
    assert_eq!((status.backend.restarts, status.totals.errors), (0, 0));
    device.detach();
}

/// While the backend runs, gdb's breakpoints are instructions in its text. They stay there if gdb
/// cannot take them out again, and are fatal without it.
fn breakpoints_that_a_killed_debugger_left_behind_cost_a_backend_and_no_request(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let backend = device.backend();
    let block = Random::by_clock().bytes(BLOCK);
    let mut gdb = Gdb::attach(backend);
    gdb.ask(format!("break {WRITE_PATH}"));
    gdb.begin("continue");
    disk::read_all(&device.path());
    gdb.kill();

    let write = start_write(&device.path(), MIB, &files.join("block"), &block);
    write.finish(PROGRAM_TIMEOUT).succeeds();
    assert_eq!(disk::read(&device.path(), MIB, BLOCK as u64), block);
    let status = device.wait_running();
    assert_ne!(status.backend.pid, Some(backend));
    assert_eq!((status.backend.restarts, status.totals.errors), (1, 0));
    let loss = status.last_recovery.expect("a loss");
    assert!(loss.cause.contains("SIGTRAP"), "{loss:?}");
    device.detach();
}

/// The debugger keeps the dead threads, and with them the word of the pidfd. The holder has killed no
/// backend before, so it has had no reason yet to look at one.
fn a_backend_that_is_killed_under_a_stopped_debugger_is_replaced(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", 8 * MIB)]);
    let backend = device.backend();
    let gdb = Gdb::attach(backend);
    let read = start_read(&device.path(), MIB);
    wait_for("the request in the status", EVENT_TIMEOUT, || {
        (device.status().in_flight.len() == 1).then_some(())
    });
    assert!(process::signal(gdb.pid(), SIGSTOP));
    assert!(process::signal(backend, SIGKILL));
    read.finish(PROGRAM_TIMEOUT).succeeds();
    assert_ne!(device.wait_running().backend.pid, Some(backend));
    assert!(process::signal(gdb.pid(), SIGCONT));
    gdb.kill();
    device.detach();
}
