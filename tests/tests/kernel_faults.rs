//! Signals, hunger and lack, for each process of a device: I/O goes on, or ends with a clear error.

use std::fs;
use std::os::unix::net::UnixStream;

use nbd_control::process::ProcessId;
use nbd_control::registry::Registry;
use nbd_tests::busy::Busy;
use nbd_tests::command::{PROGRAM_TIMEOUT, run};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::machine_state::MachineState;
use nbd_tests::process::{self, signal};
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{self, SIGABRT, SIGCONT, SIGKILL, SIGSEGV, SIGSTOP};

const MIB: u64 = 1 << 20;

kernel_tests!(
    a_backend_that_crashes_is_followed_by_another,
    a_backend_that_the_kernel_kills_for_its_memory_is_followed_by_another,
    a_holder_that_crashes_or_is_stopped_disturbs_no_io,
    a_sitter_shrugs_off_all_signals_but_two,
    a_killed_or_stopped_sitter_costs_an_ioctl_device_and_nothing_else,
    clocks_that_jump_disturb_nothing,
    a_holder_without_descriptors_goes_on_when_it_has_some,
);

/// Kills a process by a signal that usually means a fault. The first SIGSEGV that comes from
/// outside is swallowed by the handler with which Rust looks for overflowing stacks.
#[track_caller]
fn dies_of(process: ProcessId, fatal: Signal) {
    wait_until("a death", EVENT_TIMEOUT, || {
        signal(process.pid, fatal);
        !process.is_alive()
    });
}

fn a_backend_that_crashes_is_followed_by_another(api: Api) {
    let busy = Busy::attach(api);
    for fatal in [SIGSEGV, SIGABRT] {
        let backend = busy.device.backend();
        dies_of(ProcessId::of(backend).expect("a backend"), fatal);
        busy.is_followed(backend);
        let cause = busy.device.status().last_recovery.expect("a recovery").cause;
        assert!(cause.contains(fatal.as_str()), "{cause}");
        busy.device.wait_progress();
    }
    busy.ends_well();
}

/// The kernel's own killer, told to look for a victim; the backend is made the fattest.
fn a_backend_that_the_kernel_kills_for_its_memory_is_followed_by_another(api: Api) {
    let busy = Busy::attach(api);
    let backend = busy.device.backend();
    fs::write(format!("/proc/{backend}/oom_score_adj"), "1000").expect("an OOM score");
    fs::write("/proc/sysrq-trigger", "f").expect("the kernel's OOM killer");
    busy.is_followed(backend);
    busy.ends_well();
}

fn a_holder_that_crashes_or_is_stopped_disturbs_no_io(api: Api) {
    let busy = Busy::attach(api);
    for fatal in [SIGSEGV, SIGABRT] {
        let holder = busy.device.state().expect("a state").holder;
        dies_of(holder, fatal);
        busy.device.wait_progress();
        ctl(["adopt", &busy.device.name()]).succeeds();
        busy.device.wait_progress();
    }
    let holder = busy.device.state().expect("a state").holder.pid;
    assert!(signal(holder, SIGSTOP));
    busy.device.wait_progress();
    let refused = ctl(["status", &busy.device.name()]).fails_with(5);
    refused.says(&[&holder.to_string(), "is stopped: kill -CONT"]);
    assert!(signal(holder, SIGCONT));
    assert_eq!(busy.device.status().holder_pid, holder);
    busy.ends_well();
}

fn a_sitter_shrugs_off_all_signals_but_two(api: Api) {
    let busy = Busy::attach(api);
    let sitter = busy.device.status().sitter_pid;
    for harmless in Signal::iterator().filter(|it| !matches!(it, SIGKILL | SIGSTOP)) {
        assert!(signal(sitter, harmless));
    }
    busy.device.wait_progress();
    assert_eq!(busy.device.status().sitter_pid, sitter);
    busy.ends_well();
}

/// With netlink nobody sits in the driver. With ioctl the driver drops the device, as promised
/// nowhere else: everything in flight gets EIO, and the holder clears away what is left.
fn a_killed_or_stopped_sitter_costs_an_ioctl_device_and_nothing_else(api: Api) {
    for bad in [SIGSTOP, SIGKILL] {
        let before = MachineState::now();
        let busy = Busy::attach(api);
        let processes = busy.device.processes();
        let sitter = busy.device.status().sitter_pid;
        assert!(signal(sitter, bad));
        if api == Api::Netlink {
            busy.device.wait_progress();
            signal(sitter, SIGCONT);
            busy.ends_well();
        } else {
            let Busy { device, load, files } = busy;
            load.ends().is_bad();
            wait_until("it is cleared away", EVENT_TIMEOUT, || {
                device.state().is_none() && !processes.iter().any(ProcessId::is_alive)
            });
            let (name, spec) = (device.name(), files.spec("other.img", MIB));
            drop(device);
            Device::attach(api, ["--device", &name, &spec]).detach();
        }
        before.assert_unchanged();
    }
}

fn clocks_that_jump_disturb_nothing(api: Api) {
    let busy = Busy::attach(api);
    busy.device.signal_backend(SIGSTOP);
    wait_until("requests that wait", EVENT_TIMEOUT, || !busy.device.status().in_flight.is_empty());
    for jump in ["+1 day", "-3 days", "+2 days"] {
        run("date", ["--set", jump]).succeeds();
        let status = busy.device.status();
        let oldest = status.in_flight.iter().map(|request| request.age_ms).max();
        assert!(oldest.is_some_and(|age| age < 3_600_000), "{jump}: {oldest:?}");
    }
    busy.device.signal_backend(SIGCONT);
    let backend = busy.device.backend();
    run("date", ["--set", "-1 day"]).succeeds();
    assert!(signal(backend, SIGKILL));
    busy.is_followed(backend);
    let ago = busy.device.status().last_recovery.expect("a recovery").ago_ms;
    assert!((0.0..3.6e6).contains(&ago), "{ago} ms");
    ctl(["restart", &busy.device.name()]).succeeds();
    run("date", ["--set", "+1 day"]).succeeds();
    busy.ends_well();
}

/// It can neither start a backend nor hear anybody; what it has it keeps.
fn a_holder_without_descriptors_goes_on_when_it_has_some(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", MIB)]);
    let holder = device.status().holder_pid;
    let limit = |soft: &str| {
        let limit = format!("--nofile={soft}:");
        run("prlimit", ["--pid", &holder.to_string(), &limit]).succeeds();
    };
    let open = fs::read_dir(format!("/proc/{holder}/fd")).expect("a holder").count();
    limit(&open.to_string());
    // They take what numbers are left below that.
    let socket = Registry::new(None).control_socket(device.index());
    let strangers: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket)).collect();
    disk::read_all(&device.path());
    let before = process::ticks(holder);
    ctl(["wait", &device.name(), "--timeout", "2"]).fails_with(5);
    // 100 ticks are a second.
    let ticks = process::ticks(holder) - before;
    assert!(ticks < 100, "it turns and turns: {ticks} ticks");
    device.signal_backend(SIGKILL);
    let read = disk::start_read(&device.path(), 0);
    limit("1024");
    drop(strangers);
    ctl(["restart", &device.name()]).succeeds();
    read.finish(PROGRAM_TIMEOUT).succeeds();
    let status = device.wait_running();
    assert_eq!((status.holder_pid, status.totals.errors), (holder, 0));
    device.detach();
}
