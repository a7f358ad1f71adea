//! The accident of docs/design/the-wedge.md: a backend with the ioctl in one of its threads loses its
//! device to whoever only looks at it. Ours, beside it, loses nothing.

use std::path::{Path, PathBuf};

use nbd_control::status::BackendState;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, run, start};
use nbd_tests::ctl::{ctl, program, require_machine};
use nbd_tests::device::{Device, completed};
use nbd_tests::disk::{self, start_read};
use nbd_tests::fio::{Area, Fio};
use nbd_tests::gdb::Gdb;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::process;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGHUP, SIGINT, SIGSTOP, SIGTERM};

const MIB: u64 = 1 << 20;
/// The last of the machine's devices: ours take the first.
const WEDGE: &str = "nbd15";
const SECTORS: u64 = 8 * MIB / 512;

kernel_tests!(
    a_debugger_ends_a_device_whose_backend_has_the_ioctl_in_a_thread_and_not_ours,
    sigstop_ends_a_device_whose_backend_has_the_ioctl_in_a_thread_and_not_ours,
    the_sitter_is_shielded_and_status_says_so,
);

/// The example program, serving a device.
struct Wedge(Running);

impl Wedge {
    #[track_caller]
    fn start() -> Self {
        require_machine();
        let wedge = start(program("examples/wedge"), [Self::path()]);
        let wedge = Self(wedge);
        Self::wait_attached();
        wedge
    }

    fn path() -> PathBuf {
        Path::new("/dev").join(WEDGE)
    }

    #[track_caller]
    fn wait_attached() {
        wait_until("it is attached", EVENT_TIMEOUT, || {
            block_attribute(WEDGE, "size") == Some(SECTORS)
        });
        disk::read_all(&Self::path());
    }

    /// Panics unless the driver has dropped the device.
    #[track_caller]
    fn is_destroyed() {
        let read = start_read(&Self::path(), 0).finish(PROGRAM_TIMEOUT);
        assert!(read.stderr.contains("0+0 records in"), "it still answers: {}", read.stderr);
    }
}

/// Load on both devices, which they have begun to answer.
#[track_caller]
fn load(device: &Device) -> (Fio, Fio) {
    let start = |path: &Path| Area::of_device(path, 4 * MIB).start_load();
    let both = (start(&Wedge::path()), start(&device.path()));
    let before = completed(WEDGE);
    wait_until("progress beside ours", EVENT_TIMEOUT, || completed(WEDGE) > before + 20);
    device.wait_progress();
    both
}

fn a_debugger_ends_a_device_whose_backend_has_the_ioctl_in_a_thread_and_not_ours(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let wedge = Wedge::start();
    let (theirs, mut ours) = load(&device);

    let gdb = Gdb::attach(wedge.0.pid());
    let words = theirs.ends().is_bad();
    assert!(words.contains("Input/output error"), "{words}");
    Wedge::is_destroyed();
    gdb.quit();

    let mut gdb = Gdb::attach(device.backend());
    assert_eq!(device.status().backend.state, BackendState::Stopped);
    ours.goes_on();
    gdb.begin("continue");
    device.wait_progress();
    gdb.interrupt(device.backend());
    gdb.quit();
    ours.goes_on();
    ours.stop().is_good();
    assert_eq!(device.status().totals.errors, 0);
    device.detach();
}

fn sigstop_ends_a_device_whose_backend_has_the_ioctl_in_a_thread_and_not_ours(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let wedge = Wedge::start();
    let (theirs, mut ours) = load(&device);

    wedge.0.signal(SIGSTOP);
    device.signal_backend(SIGSTOP);
    let words = theirs.ends().is_bad();
    assert!(words.contains("Input/output error"), "{words}");
    Wedge::is_destroyed();
    assert_eq!(device.status().backend.state, BackendState::Stopped);

    device.signal_backend(SIGCONT);
    device.wait_progress();
    ours.goes_on();
    ours.stop().is_good();
    assert_eq!(device.status().totals.errors, 0);
    device.detach();
}

/// The story itself, as far as today's kernels go: they fail the read, where those of the time
/// had both dd and gdb wait for each other.
#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn an_assertion_under_gdb_takes_the_device_along_if_the_ioctl_is_in_a_thread() {
    let words = [program("examples/wedge"), Wedge::path().display().to_string(), MIB.to_string()];
    let mut gdb = Gdb::with_program(&[], &words.each_ref().map(String::as_str));
    gdb.begin("run");
    wait_until("it is attached", EVENT_TIMEOUT, || block_attribute(WEDGE, "size") == Some(SECTORS));
    let read = start_read(&Wedge::path(), MIB);
    let answer = gdb.answer();
    assert!(answer.contains("SIGABRT"), "{answer}");
    read.finish(PROGRAM_TIMEOUT).fails_with(1).says(&["Input/output error"]);
    Wedge::is_destroyed();
    gdb.quit();
}

fn the_sitter_is_shielded_and_status_says_so(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let path = device.path();
    let mut fio = Area::of_device(&path, 4 * MIB).start_load();
    device.wait_progress();
    let status = device.status();
    let sitter = status.sitter_pid;
    let text = ctl(["status", &device.name()]).succeeds().stdout;
    let attach = ["-nx", "-batch", "-p", &sitter.to_string()].map(str::to_owned);
    match api {
        Api::Ioctl => {
            assert_eq!(status.sitter_tracer_pid, Some(status.holder_pid));
            let reason = "shielded from debuggers by the trace of its holder";
            assert!(text.contains(reason), "{text}");
            let refused = run("gdb", &attach);
            let holder = status.holder_pid;
            refused.says(&[&format!("already traced by process {holder}"), "not permitted"]);
            let strace = run("strace", ["-p", &sitter.to_string()]).fails_with(1);
            strace.says(&["Operation not permitted"]);
        }
        Api::Netlink => {
            assert_eq!(status.sitter_tracer_pid, None);
            assert!(!text.contains("shielded"), "{text}");
            // Nothing of the driver is in it: whoever wants to may look.
            run("gdb", &attach).succeeds();
            assert!(process::signal(sitter, SIGSTOP));
        }
    }
    // Whoever ends services sends this to all their processes; a tracee may take it to heart.
    for harmless in [SIGCONT, SIGTERM, SIGHUP, SIGINT] {
        assert!(process::signal(sitter, harmless));
        device.wait_progress();
    }
    fio.goes_on();
    fio.stop().is_good();
    let status = device.wait_running();
    assert_eq!((status.backend.restarts, status.totals.errors), (0, 0));
    log.has_no_complaints();
    device.detach();
}
