//! `nbd-ctl debug` with a real gdb: it finds the backend, tells what waits, and does not start where
//! it would wait for itself.

use std::path::Path;
use std::process::Command;

use nbd_control::registry::Registry;
use nbd_tests::command::{Output, PROGRAM_TIMEOUT, launch, run, start};
use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::disk::start_write;
use nbd_tests::gdb::Gdb;
use nbd_tests::mount::Mount;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};

const MIB: u64 = 1 << 20;

kernel_tests!(
    gdb_lists_and_prints_the_requests_that_wait_for_the_backend,
    gdb_is_not_started_where_it_would_wait_for_itself,
    debug_refuses_a_traced_backend_and_a_device_without_one,
);

fn gdb_lists_and_prints_the_requests_that_wait_for_the_backend(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let name = device.name();
    let mut block = b"these bytes wait in the ring".to_vec();
    block.resize(4096, b'.');

    let script = ["break pwrite64", "continue", "nbd requests", "nbd request 0", "nbd request 1"];
    let script = script.iter().flat_map(|command| ["-ex", command]);
    let words = ["debug", &name, "--source", "/usr/src", "--", "-nx", "-batch"].into_iter();
    let gdb = start(program("nbd-ctl"), words.chain(script));
    // As soon as it has its breakpoint.
    wait_until("gdb lets the backend go on", PROGRAM_TIMEOUT, || {
        gdb.output().contains("Breakpoint 2 at")
    });
    let write = start_write(&device.path(), 3 * MIB, &files.join("block"), &block);
    let output = gdb.finish(PROGRAM_TIMEOUT).fails_with(1);
    write.finish(PROGRAM_TIMEOUT).succeeds();

    let text = &output.stdout;
    assert!(text.contains(&format!("nbd: {name} waits while this program is stopped")), "{text}");
    assert!(text.contains(&format!("nbd: 1 of {name}'s requests wait")), "{text}");
    let place = format!("{}+4096", 3 * MIB);
    let line = text.lines().find(|line| line.trim_start().starts_with("0  "));
    let line = line.unwrap_or_else(|| panic!("no request 0:\n{text}"));
    for word in ["write", &place, "executing"] {
        assert!(line.contains(word), "{line}");
    }
    for words in [&*format!("write {place}, flags 0x0"), "for the first time", "these bytes wait"] {
        assert!(text.contains(words), "no \"{words}\" in\n{text}");
    }
    output.says(&["nbd: 1: no such request: see nbd requests"]);
    let status = device.wait_running();
    assert_eq!((status.backend.restarts, status.backend.tracer_pid), (0, None));
    assert!(Registry::new(None).gdb_script(device.index()).exists());
    device.detach();
}

/// In a directory and with an output of its own.
fn debug_in(directory: &Path, output: Option<&Path>, words: &[&str]) -> Output {
    let shell = match output {
        Some(path) => format!("exec \"$@\" >>'{}'", path.display()),
        None => "exec \"$@\"".into(),
    };
    let mut command = Command::new("sh");
    command.current_dir(directory).args(["-c", &shell, "sh", &program("nbd-ctl"), "debug"]);
    command.args(words);
    launch(command).finish(PROGRAM_TIMEOUT)
}

fn gdb_is_not_started_where_it_would_wait_for_itself(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 96 * MIB)]);
    let name = device.name();
    run("mkfs.ext4", ["-q".as_ref(), device.path().as_os_str()]).succeeds();
    let place = files.join("mount");
    let mount = Mount::new(&device.path(), &place);
    let batch = ["--", "-nx", "-batch", "-ex", "nbd requests"];
    let words = [&[&*name], &batch[..]].concat();

    let refused = debug_in(&place, None, &words).fails_with(4);
    refused.says(&["gdb would wait for itself", "(the working directory)", "--yes"]);
    let log = place.join("log");
    let refused = debug_in(Path::new("/"), Some(&log), &words).fails_with(4);
    refused.says(&["log (the terminal or a redirection)"]);
    let sources = place.display().to_string();
    let sources = [&[&*name, "--source", &sources], &batch[..]].concat();
    debug_in(Path::new("/"), None, &sources).fails_with(4).says(&["(the sources)"]);
    assert_eq!(device.status().backend.tracer_pid, None);

    let yes = [&[&*name, "--yes"], &batch[..]].concat();
    let warned = debug_in(&place, None, &yes).succeeds();
    assert!(warned.stdout.contains("no request is waiting"), "{}", warned.stdout);
    warned.says(&["warning: gdb may wait for itself"]);

    // A backend whose program is on its own device.
    let copy = place.join("nbd-serve");
    run("strip", ["-o".as_ref(), copy.as_os_str(), program("nbd-serve").as_ref()]).succeeds();
    run("sync", ["-f".as_ref(), copy.as_os_str()]).succeeds();
    let spec = format!("file:{}", files.join("disk.img").display());
    ctl(["replace", &name, "--", &copy.display().to_string(), &spec]).succeeds();
    let refused = debug_in(Path::new("/"), None, &words).fails_with(4);
    refused.says(&["nbd-serve (the backend's program, libraries and symbols)"]);
    ctl(["replace", &name, &spec]).succeeds();
    debug_in(Path::new("/"), None, &words).succeeds();
    mount.unmount();
    device.detach();
}

fn debug_refuses_a_traced_backend_and_a_device_without_one(api: Api) {
    let files = TempDir::new();
    let device =
        Device::attach(api, ["--restart", "never", "--no-spare", &files.spec("disk.img", MIB)]);
    let name = device.name();
    ctl(["debug", "nbd14"]).fails_with(3).says(&["no such attached device"]);
    let gdb = Gdb::attach(device.backend());
    let refused = ctl(["debug", &name]).fails_with(4);
    refused.says(&[&format!("is traced by pid {} already", gdb.pid())]);
    gdb.quit();
    device.signal_backend(nix::sys::signal::Signal::SIGKILL);
    wait_until("it is gone", EVENT_TIMEOUT, || device.status().backend.pid.is_none());
    ctl(["debug", &name]).fails_with(1).says(&["no backend to debug: it is waiting"]);
    device.detach_by_force();
}
