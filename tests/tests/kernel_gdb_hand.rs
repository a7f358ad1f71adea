//! Backends that are started by hand under gdb, while a filesystem on their device stays mounted:
//! they stop, fail an assertion, are killed with their debugger, and come back as another build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_control::status::{BackendState, Status};
use nbd_tests::c_program::compile_plugin;
use nbd_tests::command::{PROGRAM_TIMEOUT, launch, run, start};
use nbd_tests::ctl::{ctl, program, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk::start_read;
use nbd_tests::gdb::Gdb;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::mount::Mount;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// The filesystem has the first half of the device, and nobody but a test touches this.
const BUG: u64 = SIZE / 4 * 3;

kernel_tests!(
    a_backend_is_rebuilt_and_run_again_under_gdb_with_its_filesystem_mounted,
    an_assertion_that_fails_under_gdb_holds_io_until_the_bug_is_mended,
    a_plugin_of_nbdkit_is_changed_under_gdb_with_its_filesystem_mounted,
);

/// A mounted ext4 with one file in it.
struct Filesystem {
    mount: Mount,
    file: PathBuf,
    content: Vec<u8>,
}

impl Filesystem {
    fn make(device: &Device, files: &TempDir) -> Self {
        let size = format!("{}K", SIZE / 2 / 1024);
        run("mkfs.ext4", ["-q".as_ref(), device.path().as_os_str(), size.as_ref()]).succeeds();
        let mount = Mount::new(&device.path(), &files.join("mount"));
        let file = files.join("mount").join("file");
        let content = Random::by_clock().bytes(MIB as usize);
        fs::write(&file, &content).expect("room for a file");
        run("sync", ["-f".as_ref(), file.as_os_str()]).succeeds();
        Self { mount, file, content }
    }

    /// Panics unless the file on the device is what it was.
    #[track_caller]
    fn is_whole(&self) {
        fs::write("/proc/sys/vm/drop_caches", "3").expect("caches to drop");
        // By a program that can be left behind if the device does not answer.
        let copy = PathBuf::from("/tmp/copy");
        run("cp", [&self.file, &copy]).succeeds();
        assert!(fs::read(&copy).expect("a copy") == self.content, "it has changed");
    }
}

/// Puts a build of a program where another one was, as a compiler does: as a new file.
fn build(from: &str, to: &Path, number: u8) {
    let mut bytes = fs::read(from).expect("a program");
    // What comes after the end of an ELF file is of no importance.
    bytes.push(number);
    let new = to.with_extension("new");
    fs::write(&new, bytes).expect("room for a program");
    fs::set_permissions(&new, fs::metadata(from).expect("a program").permissions())
        .expect("a mode");
    fs::rename(new, to).expect("a program to replace");
}

#[track_caller]
fn wait_for_state(device: &Device, state: BackendState) -> Status {
    wait_for("a state of the backend", EVENT_TIMEOUT, || {
        let status = device.status();
        (status.backend.state == state).then_some(status)
    })
}

fn a_backend_is_rebuilt_and_run_again_under_gdb_with_its_filesystem_mounted(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let spec = files.spec("disk.img", SIZE);
    let device = Device::attach(api, ["--no-spare", &spec]);
    let name = device.name();
    let filesystem = Filesystem::make(&device, &files);

    let backend = files.join("backend");
    build(&program("nbd-serve"), &backend, 1);
    let path = backend.display().to_string();
    let mut gdb = Gdb::with_program(&[], &[&path, "--join", &name, "--takeover", &spec]);
    gdb.ask("break pwrite64");
    gdb.begin("run");
    wait_until("the one under gdb serves", EVENT_TIMEOUT, || {
        device.status().backend.tracer_pid == Some(gdb.pid())
    });
    let mut write = start("sync", ["-f".as_ref(), touch(&filesystem).as_os_str()]);
    let answer = gdb.answer();
    assert!(answer.contains("hit Breakpoint 1"), "{answer}");
    let stopped = wait_for_state(&device, BackendState::Stopped);
    assert!(!stopped.in_flight.is_empty());

    // Quitting kills what gdb has started. What waits, waits on for the next build.
    gdb.quit();
    wait_for_state(&device, BackendState::Waiting);
    build(&program("nbd-serve"), &backend, 2);
    let mut gdb = Gdb::with_program(&[], &[&path, "--join", &name, &spec]);
    gdb.begin("run");
    wait_until("what waited is written", PROGRAM_TIMEOUT, || !write.is_running());
    write.finish(PROGRAM_TIMEOUT).succeeds();
    filesystem.is_whole();
    assert_eq!(device.status().backend.tracer_pid, Some(gdb.pid()));

    // Killed, it takes the backend along. The program of the attach is told to come back.
    gdb.kill();
    wait_for_state(&device, BackendState::Waiting);
    let write = start("sync", ["-f".as_ref(), touch(&filesystem).as_os_str()]);
    wait_until("it waits", EVENT_TIMEOUT, || !device.status().in_flight.is_empty());
    ctl(["restart", &name]).succeeds();
    write.finish(PROGRAM_TIMEOUT).succeeds();
    let status = device.wait_running();
    assert_eq!((status.backend.tracer_pid, status.totals.errors), (None, 0));
    filesystem.is_whole();
    filesystem.mount.unmount();
    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), device.path().as_os_str()]).succeeds();
    log.has_no_complaints();
    device.detach();
}

/// Leaves something for a sync to write.
fn touch(filesystem: &Filesystem) -> PathBuf {
    let path = filesystem.file.with_extension("dirty");
    fs::write(&path, Random::by_clock().bytes(5000)).expect("room for a file");
    path
}

fn an_assertion_that_fails_under_gdb_holds_io_until_the_bug_is_mended(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let image = files.image("disk.img", SIZE).display().to_string();
    let crasher = program("examples/crasher");
    let backend = files.join("backend");
    build(&crasher, &backend, 1);
    let path = backend.display().to_string();
    let bug = BUG.to_string();

    let arguments = ["attach", "--external", "--device", "nbd0"];
    let attach = start_ctl(arguments.into_iter().chain(["--kernel-api", api.name()]));
    wait_until("an invitation to join", EVENT_TIMEOUT, || attach.words().contains("--join nbd0"));
    let mut gdb = Gdb::with_program(&[("NBD_JOIN", "nbd0")], &[&path, &image, &bug]);
    // Where it panics, and not where it aborts after the stack has been unwound.
    gdb.ask("break rust_panic");
    gdb.begin("run");
    let device = Device::printed_by(&attach.finish(PROGRAM_TIMEOUT).succeeds());
    let filesystem = Filesystem::make(&device, &files);
    assert_eq!(device.status().backend.tracer_pid, Some(gdb.pid()));

    let mut read = start_read(&device.path(), BUG);
    let answer = gdb.answer();
    assert!(answer.contains("hit Breakpoint 1"), "{answer}");
    let stack = gdb.ask("backtrace");
    assert!(stack.contains("step_on"), "{stack}");
    // In user-mode Linux gdb sometimes does not see the signal before the end that it brings.
    let answer = gdb.ask("continue");
    assert!(answer.contains("SIGABRT"), "{answer}");
    let is_over = answer.contains("Program terminated");
    wait_for_state(&device, if is_over { BackendState::Waiting } else { BackendState::Stopped });
    assert!(read.is_running());

    // Mended, built and run again: the very read that failed the assertion is answered.
    build(&crasher, &backend, 2);
    gdb.ask(format!("set args {image}"));
    gdb.begin("run");
    read.finish(PROGRAM_TIMEOUT).succeeds();
    filesystem.is_whole();

    // gdb dies and takes it along. Whoever comes next finds what waits.
    gdb.kill();
    wait_for_state(&device, BackendState::Waiting);
    let read = start_read(&device.path(), 0);
    wait_until("it waits", EVENT_TIMEOUT, || !device.status().in_flight.is_empty());
    let mut next = Command::new(&path);
    next.arg(&image).env("NBD_JOIN", "nbd0");
    let next = launch(next);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    filesystem.is_whole();

    // One that lives is replaced if that is asked for.
    let mut newer = Command::new(&path);
    newer.arg(&image).env("NBD_JOIN", "nbd0");
    let refused = launch(newer).finish(PROGRAM_TIMEOUT);
    refused.fails_with(1).says(&["NBD_TAKEOVER=1"]);
    let mut newer = Command::new(&path);
    newer.arg(&image).env("NBD_JOIN", "nbd0").env("NBD_TAKEOVER", "1");
    let newer = launch(newer);
    next.finish(PROGRAM_TIMEOUT).fails_with(128 + SIGKILL as i32);
    filesystem.is_whole();
    filesystem.mount.unmount();
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    newer.finish(PROGRAM_TIMEOUT).succeeds();
}

fn a_plugin_of_nbdkit_is_changed_under_gdb_with_its_filesystem_mounted(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let image = files.image("disk.img", SIZE);
    let plugin = compile_plugin(&files, "my.so", &[]);
    let spec = format!("nbdkit:{},disk={}", plugin.display(), image.display());
    let device = Device::attach(api, ["--no-spare", &spec]);
    let name = device.name();
    let filesystem = Filesystem::make(&device, &files);

    let nbd_serve = program("nbd-serve");
    let mut write = None;
    for (model, takeover) in [("= 3", &["--takeover"][..]), ("= 2", &[])] {
        let words = [&[&*nbd_serve, "--join", &name], takeover, &[&*spec]].concat();
        let mut gdb = Gdb::with_program(&[], &words);
        gdb.ask("break writes");
        gdb.begin("run");
        // What the last build has stopped at is executed by the next one.
        let write = write.get_or_insert_with(|| {
            wait_until("the one under gdb serves", EVENT_TIMEOUT, || {
                device.status().backend.tracer_pid == Some(gdb.pid())
            });
            start("sync", ["-f".as_ref(), touch(&filesystem).as_os_str()])
        });
        let answer = gdb.answer();
        assert!(answer.contains("hit Breakpoint 1") && answer.contains("plugin.c"), "{answer}");
        // Which build it is. The plugin's variables are there, as in any program.
        let answer = gdb.ask("print plugin._thread_model");
        assert!(answer.contains(model), "{answer}");
        let stopped = wait_for_state(&device, BackendState::Stopped);
        assert!(!stopped.in_flight.is_empty() && write.is_running());
        gdb.quit();
        wait_for_state(&device, BackendState::Waiting);
        let changed = ["MODEL=NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS"];
        assert_eq!(compile_plugin(&files, "my.so", &changed), plugin);
    }
    ctl(["restart", &name]).succeeds();
    write.expect("a write").finish(PROGRAM_TIMEOUT).succeeds();
    assert_eq!(device.wait_running().totals.errors, 0);
    filesystem.is_whole();
    filesystem.mount.unmount();
    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), device.path().as_os_str()]).succeeds();
    log.has_no_complaints();
    device.detach();
}
