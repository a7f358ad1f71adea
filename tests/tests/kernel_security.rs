//! What those may do who are not to be trusted: backends that were hijacked, backends in a
//! sandbox, and users who may only look.

use std::fs;
use std::path::Path;

use nbd_control::registry::Registry;
use nbd_tests::command::{Output, PROGRAM_TIMEOUT, run, start};
use nbd_tests::ctl::{ctl, program, require_machine};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::page::root;
use nbd_tests::process::signal;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;

kernel_tests!(
    a_hijacked_backend_disturbs_neither_holder_nor_other_devices,
    a_backend_in_a_sandbox_stays_there,
    group_members_can_read_status_and_change_nothing,
);

/// Descriptors of a process.
fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn a_hijacked_backend_disturbs_neither_holder_nor_other_devices(api: Api) {
    let bystander = Device::attach(api, ["mem:8M"]);
    let noise = Random::by_clock().bytes(MIB as usize);
    disk::write(&bystander.path(), MIB, &noise);
    let script = root().join("tests/hostile-backend.py").display().to_string();
    for mode in [
        "garbage",
        "huge",
        "descriptors",
        "claims",
        "keeps",
        "words",
        "scribbles",
        "answers",
        "shuts",
        "deaf",
    ] {
        let files = TempDir::new();
        let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", 8 * MIB)]);
        let (name, holder) = (device.name(), device.status().holder_pid);
        let before = descriptors(holder);
        let order = ["replace", &name, "--timeout", "5", "--", "/usr/bin/python3", &script, mode];
        // Some come so far as to serve, others do not: all are fine, but for a holder that hangs.
        let replaced = ctl(order);
        let reader = start(
            "dd",
            [&format!("if=/dev/{name}"), "of=/dev/null", "bs=4k", "count=1", "iflag=direct"],
        );
        // Nobody else notices, and the holder answers.
        assert!(disk::read(&bystander.path(), MIB, MIB) == noise, "{mode}: other data");
        let status = device.status();
        assert_eq!(status.holder_pid, holder, "{mode}");
        assert!(descriptors(holder) < before + 40, "{mode}: descriptors are left");
        let words = [&replaced.stderr, &ctl(["status", &name]).stdout, &ctl(["why", &name]).stdout];
        assert!(!words.iter().any(|text| text.contains('\x1b')), "{mode}: {words:?}");
        // Whatever the device's fate is: it can be ended, and nothing is left.
        device.detach_by_force();
        reader.finish(PROGRAM_TIMEOUT);
    }
    bystander.detach();
}

/// A line of /proc/PID/status.
fn field(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.trim().to_owned()
}

/// Which namespace of that kind a process is in.
fn namespace(pid: &str, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
    link.display().to_string()
}

#[track_caller]
fn is_confined(pid: i32) {
    assert_eq!(field(pid, "CapBnd:"), "0000000000000000");
    assert_eq!(field(pid, "CapPrm:"), "0000000000000000");
    assert_eq!((field(pid, "NoNewPrivs:"), field(pid, "Seccomp:")), ("1".into(), "2".into()));
}

/// Makes a process in a user namespace of its own, by clone and by clone3, and tells what came of it.
const CLONES: &str = "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
new_user, sigchld = 0x10000000, 17
def call(*words):
    got = libc.syscall(*map(ctypes.c_long, words))
    if got == 0:
        os._exit(0)
    return got, ctypes.get_errno()
words = (ctypes.c_uint64 * 8)(new_user, 0, 0, 0, sigchld)
print(*call(56, new_user | sigchld, 0, 0, 0, 0), *call(435, ctypes.addressof(words), 64))
";

fn a_backend_in_a_sandbox_stays_there(api: Api) {
    let files = TempDir::new();
    let disk = files.image("disk.img", 8 * MIB).display().to_string();
    let report = files.join("report");
    run("chown", ["-R".as_ref(), "nobody".as_ref(), files.path().as_os_str()]).succeeds();
    // What a hijacked backend might try, before it goes on as a good one.
    let tries = format!(
        "{{ ls /run/nbd; unshare --user true; python3 -c '{CLONES}'; \
         cd /proc/self/ns; readlink net mnt ipc uts; }} >{} 2>&1; exec {} file:{disk}",
        report.display(),
        program("nbd-serve"),
    );
    let shell = ["--user", "nobody", "--sandbox", "--", "/bin/sh", "-c", &tries];
    let device = Device::attach(api, shell);
    let told = fs::read_to_string(&report).expect("a report");
    let lines: Vec<_> = told.lines().collect();
    let [list, unshare, clones, spaces @ ..] = &lines[..] else {
        panic!("it could do something:\n{told}");
    };
    // Everybody may list that directory, and make a user namespace.
    assert!(list.contains("Permission denied"), "{told}");
    assert!(unshare.contains("Operation not permitted"), "{told}");
    // EPERM, and ENOSYS, upon which C libraries take the other one.
    assert_eq!(*clones, "-1 1 -1 38", "{told}");
    assert_eq!(spaces.len(), 4, "{told}");
    for space in spaces {
        let (kind, _) = space.split_once(':').expect("a kind");
        assert_ne!(*space, namespace("self", kind), "{told}");
    }

    // It serves, and so do its successors, also those of another holder.
    let noise = Random::by_clock().bytes(MIB as usize);
    disk::write(&device.path(), MIB, &noise);
    is_confined(device.backend());
    // Nor does it have what would let it take all memory.
    let limits = fs::read_to_string(format!("/proc/{}/limits", device.backend())).expect("limits");
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory"));
    assert!(!locked.expect("a limit").contains("unlimited"), "{limits}");
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", device.backend()));
    assert_eq!(score.expect("a score"), "0\n");
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the holder is dead", EVENT_TIMEOUT, || !holder.is_alive());
    ctl(["adopt", &device.name()]).succeeds();
    let first = device.backend();
    assert!(signal(first, SIGKILL));
    assert!(disk::read(&device.path(), MIB, MIB) == noise, "other data than was written");
    let second = device.wait_running().backend.pid.expect("a backend");
    assert_ne!(second, first);
    is_confined(second);
    device.detach();

    let spec = format!("file:{disk}");
    ctl(["attach", "--sandbox", &spec]).fails_with(2).says(&["--sandbox needs --user"]);
    let root = ["attach", "--user", "root", "--sandbox", &spec];
    ctl(root).fails_with(2).says(&["--sandbox cannot confine root"]);
    let device = Device::attach(api, ["--user", "nobody", "--sandbox=network", &spec]);
    is_confined(device.backend());
    let backend = device.backend().to_string();
    assert_eq!(namespace(&backend, "net"), namespace("self", "net"));
    assert_ne!(namespace(&backend, "mnt"), namespace("self", "mnt"));
    device.detach();
}

/// nbd-ctl as nobody, with this group besides.
fn as_nobody(groups: &str, arguments: &[&str]) -> Output {
    require_machine();
    let ctl = program("nbd-ctl");
    let who = ["--reuid=nobody", "--regid=nogroup", groups, "--", &ctl];
    run("setpriv", who.into_iter().chain(arguments.iter().copied()))
}

fn group_members_can_read_status_and_change_nothing(api: Api) {
    let device = Device::attach(api, ["--group", "daemon", "delay@mem:8M"]);
    let name = device.name();
    let member = |arguments: &[&str]| as_nobody("--groups=daemon", arguments);
    let looks = |name: &str| {
        let status = member(&["status", name]).succeeds();
        assert!(status.stdout.contains("backend    running"), "{}", status.stdout);
        assert!(member(&["list"]).succeeds().stdout.contains(name));
    };
    looks(&name);
    for look in
        [&["trace", &name, "--last", "1"][..], &["why", &name], &["set", &name], &["metrics"]]
    {
        member(look).succeeds();
    }
    let orders: [&[&str]; 8] = [
        &["detach", &name],
        &["detach", "--force", &name],
        &["restart", &name],
        &["replace", &name, "--", "/bin/true"],
        &["pause", "--kill", &name],
        &["resume", &name],
        &["fail", "--kill", &name],
        &["set", &name, "delay.read=5ms"],
    ];
    let backend = device.backend();
    for order in orders {
        member(order).fails_with(1).says(&["permission denied: this command requires root"]);
    }
    assert_eq!(device.backend(), backend);
    let outsider = as_nobody("--clear-groups", &["status", &name]);
    assert_ne!(outsider.code, 0, "{}", outsider.stdout);

    // Another holder knows the group as well.
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the holder is dead", EVENT_TIMEOUT, || !holder.is_alive());
    ctl(["adopt", &name]).succeeds();
    looks(&name);
    member(&["detach", &name]).fails_with(1);
    // The words of backends are not among what the group may see, neither now nor afterwards.
    let (log, last) =
        (Registry::new(None).log(device.index()), Registry::new(None).last_log(device.index()));
    let read = |path: &Path| {
        run(
            "setpriv",
            [
                "--reuid=nobody",
                "--regid=nogroup",
                "--groups=daemon",
                "cat",
                &path.display().to_string(),
            ],
        )
    };
    assert_ne!(read(&log).code, 0);
    device.detach();
    assert_ne!(read(&last).code, 0);
    ctl(["attach", "--group", "nosuchgroup", "mem:8M"]).fails_with(2).says(&["no such group"]);
}
