//! The holder becomes another build of itself: I/O goes on, and all that it held is held.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_control::process::stat;
use nbd_control::status::BackendState;
use nbd_tests::busy::Busy;
use nbd_tests::command::{Output, PROGRAM_TIMEOUT, Running, launch};
use nbd_tests::ctl::{program, require_machine};
use nbd_tests::device::Device;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::process::{children, signal};
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGTERM};

const MIB: u64 = 1 << 20;

kernel_tests!(
    an_upgrade_disturbs_no_io_and_forgets_nothing,
    upgrade_refuses_an_unfit_program_and_the_holder_goes_on,
    a_holder_that_dies_in_its_upgrade_loses_nothing,
    a_holder_that_is_told_to_stop_meanwhile_stops,
);

/// Has all holders, or that of a device, become `holder`.
fn upgrade(what: &str, holder: &Path) -> Output {
    start_upgrade(what, holder).finish(PROGRAM_TIMEOUT)
}

fn start_upgrade(what: &str, holder: &Path) -> Running {
    require_machine();
    let mut command = Command::new(program("nbd-ctl"));
    command.args(["upgrade", what]).env("NBD_HOLDER_PROGRAM", holder);
    launch(command)
}

/// A file that can be executed.
fn executable(files: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = files.join(name);
    fs::write(&path, text).expect("a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    path
}

/// Another build of the holder, as far as anybody can tell.
fn build(files: &TempDir, name: &str) -> PathBuf {
    let path = files.join(name);
    fs::copy(program("nbd-kernel-holder"), &path).expect("a copy of the holder");
    path
}

fn executed(pid: i32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).expect("a process")
}

fn an_upgrade_disturbs_no_io_and_forgets_nothing(api: Api) {
    let mut log = KernelLog::from_now();
    let busy = Busy::attach(api);
    let device = &busy.device;
    let before = device.status();

    for (what, name) in [(device.name(), "second"), ("--all".into(), "third")] {
        let next = build(&busy.files, name);
        upgrade(&what, &next).succeeds().says(&[&device.name(), name]);
        let status = device.status();
        assert_eq!(status.holder_pid, before.holder_pid, "it is the same process");
        assert_eq!(executed(status.holder_pid), next);
        assert_eq!(status.backend.state, BackendState::Running);
        assert_eq!(status.backend.pid, before.backend.pid, "it was not disturbed");
        assert_eq!(status.sitter_tracer_pid, before.sitter_tracer_pid);
        device.wait_progress();
    }
    // A sitter that was seized anew would take this for the end.
    assert!(signal(before.sitter_pid, SIGCONT));
    device.wait_progress();

    // The new holder has the backend for a child: it starts another, and knows why.
    let backend = device.backend();
    assert!(signal(backend, SIGKILL));
    busy.is_followed(backend);
    let cause = device.status().last_recovery.expect("a recovery").cause;
    assert!(cause.contains("SIGKILL"), "{cause}");
    device.wait_progress();
    wait_until("all children are alive", EVENT_TIMEOUT, || {
        let states = children(before.holder_pid).into_iter().filter_map(stat);
        states.map(|stat| stat.state).all(|state| state != 'Z')
    });
    busy.ends_well();
    log.has_no_complaints();
}

fn upgrade_refuses_an_unfit_program_and_the_holder_goes_on(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let before = device.status();
    let program = executed(before.holder_pid);
    let version = "takes over: protocol 1, state 99, ledger 2";
    let other = executable(&files, "other", &format!("#!/bin/sh\necho {version}\n"));
    let nonsense = executable(&files, "nonsense", "nonsense");
    for (wrong, words) in
        [(Path::new("/bin/true"), "it said \"\""), (&other, version), (&nonsense, "cannot be run")]
    {
        let refused = upgrade(&device.name(), wrong).fails_with(1);
        refused.says(&["the present holder goes on", &wrong.display().to_string(), words]);
    }
    upgrade(&device.name(), &files.join("nothing")).fails_with(1).says(&["no such program"]);
    let after = device.status();
    assert_eq!((after.holder_pid, after.backend.pid), (before.holder_pid, before.backend.pid));
    assert_eq!(executed(after.holder_pid), program);
    device.detach();
}

/// The same as a holder that dies at any other time.
fn a_holder_that_dies_in_its_upgrade_loses_nothing(api: Api) {
    let mut log = KernelLog::from_now();
    let busy = Busy::attach(api);
    let device = &busy.device;
    let before = device.status();
    // It takes over once a file is there.
    let there = busy.files.join("there").display().to_string();
    let mortal = format!(
        "#!/bin/sh\ncase \"$*\" in *--take-over*) [ -e {there} ] || exit 1;; esac\n\
         case \"$*\" in *--adopt*) touch {there};; esac\nexec {} \"$@\"\n",
        program("nbd-kernel-holder")
    );
    let mortal = executable(&busy.files, "mortal", &mortal);

    let died = upgrade(&device.name(), &mortal).fails_with(1);
    died.says(&["its holder ended before it answered", "adopted by"]);
    device.wait_progress();
    let after = device.status();
    assert_ne!(after.holder_pid, before.holder_pid);
    assert_eq!(after.backend.pid, before.backend.pid);
    // The next one lives, and with a backend that is nobody's child.
    upgrade(&device.name(), &mortal).succeeds();
    device.wait_progress();
    let backend = device.backend();
    assert!(signal(backend, SIGKILL));
    busy.is_followed(backend);
    busy.ends_well();
    log.has_no_complaints();
}

/// The new program would know nothing of it.
fn a_holder_that_is_told_to_stop_meanwhile_stops(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let holder = device.status().holder_pid;
    let (asked, goes_on) = (files.join("asked"), files.join("goes-on"));
    let slow = format!(
        "#!/bin/sh\ntouch {}\nuntil [ -e {} ]; do sleep 0.05; done\nexec {} \"$@\"\n",
        asked.display(),
        goes_on.display(),
        program("nbd-kernel-holder")
    );
    let slow = executable(&files, "slow", &slow);
    let upgrade = start_upgrade(&device.name(), &slow);
    wait_until("the new program is asked", EVENT_TIMEOUT, || asked.exists());
    assert!(signal(holder, SIGTERM));
    fs::write(&goes_on, "").expect("a file");
    upgrade.finish(PROGRAM_TIMEOUT).fails_with(4).says(&[&device.name(), "stop"]);
    wait_until("the holder has ended", EVENT_TIMEOUT, || {
        stat(holder).is_none_or(|stat| stat.state == 'Z')
    });
    assert!(device.state().is_none(), "and has detached it");
}
