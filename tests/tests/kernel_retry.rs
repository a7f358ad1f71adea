//! A backend that does not come back: it is started again for as long as it takes, whatever passes
//! in the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nbd_control::status::{BackendState, RetryStatus};
use nbd_tests::command::PROGRAM_TIMEOUT;
use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;
/// The number of failures after which older holders gave up. The pauses before them add up to 20 s.
const FORMER_LIMIT: u32 = 10;
/// So many failures are an outage. The pauses before them add up to less than a second.
const OUTAGE_TRIES: u32 = 5;

kernel_tests!(
    a_backend_that_cannot_start_is_started_again_until_it_can,
    a_restart_ends_the_pause_and_says_what_fails,
    a_holder_that_is_adopted_or_upgraded_in_an_outage_goes_on_trying,
    adoption_keeps_the_restart_limit,
);

/// A program that is there or not.
struct Program(PathBuf);

impl Program {
    fn new(directory: &TempDir) -> Self {
        let made = Self(directory.join("serve"));
        made.comes();
        made
    }

    fn comes(&self) {
        let serve = program("nbd-serve");
        fs::write(&self.0, format!("#!/bin/sh\nexec {serve} \"$@\"\n")).expect("a script");
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    fn goes(&self) {
        fs::remove_file(&self.0).expect("a script");
    }

    fn attach(&self, api: Api, options: &[&str], spec: &str) -> Device {
        let command = [self.0.to_str().expect("a path"), spec];
        Device::attach(api, options.iter().copied().chain(["--"]).chain(command))
    }
}

fn tries(device: &Device, least: u32) -> RetryStatus {
    wait_for("failed tries", EVENT_TIMEOUT, || {
        let backend = device.status().backend;
        assert_ne!(backend.state, BackendState::Down, "{}", backend.detail);
        backend.retry.filter(|retry| retry.tries >= least)
    })
}

fn lines(log: &str, event: &str) -> usize {
    log.lines().filter(|line| line.contains(&format!("event={event}"))).count()
}

fn shows(command: &str, device: &Device, words: &[&str]) {
    let text = ctl([command, &device.name()]).succeeds().stdout;
    for word in words {
        assert!(text.contains(word), "{command} does not tell {word:?}: {text}");
    }
}

fn is_readable(path: &Path) {
    disk::start_read(path, 0).finish(PROGRAM_TIMEOUT).succeeds();
}

fn a_backend_that_cannot_start_is_started_again_until_it_can(api: Api) {
    let files = TempDir::new();
    let serve = Program::new(&files);
    let device = serve.attach(api, &[], &files.spec("disk.img", MIB));
    serve.goes();
    device.signal_backend(SIGKILL);
    let retry = tries(&device, FORMER_LIMIT + 1);
    assert!(retry.cause.contains("serve: No such file"), "{}", retry.cause);
    let read = disk::start_read(&device.path(), 0);

    let words = ["tries have failed in", "No such file", "the next try", "nbd-ctl restart"];
    shows("why", &device, &words);
    shows("status", &device, &words[..3]);
    let log = device.log();
    assert_eq!(lines(&log, "retrying"), 1, "{log}");
    assert_eq!(
        log.matches("No such file").count(),
        2,
        "the failure, and that it is retried: {log}"
    );

    serve.comes();
    read.finish(PROGRAM_TIMEOUT).succeeds();
    let log = wait_for("the end of it in the log", EVENT_TIMEOUT, || {
        Some(device.log()).filter(|log| lines(log, "recovered") > 0)
    });
    assert_eq!(lines(&log, "recovered"), 1, "{log}");
    assert!(log.contains("failed_tries="), "{log}");
    let status = device.wait_running();
    assert_eq!(status.backend.retry, None);
    device.detach();
}

fn a_restart_ends_the_pause_and_says_what_fails(api: Api) {
    let files = TempDir::new();
    let serve = Program::new(&files);
    let device = serve.attach(api, &[], &files.spec("disk.img", MIB));
    let name = device.name();
    serve.goes();
    device.signal_backend(SIGKILL);
    tries(&device, FORMER_LIMIT - 2);
    let failed = ctl(["restart", &name]).fails_with(1);
    failed.says(&["does not come back", "No such file", "is started again in", "nbd-ctl why"]);
    // A replacement that fails is not what is started from then on.
    ctl(["replace", &name, "--", "/bin/false"]).fails_with(1).says(&["former program"]);
    serve.comes();
    ctl(["restart", &name]).succeeds();
    is_readable(&device.path());
    device.detach();
}

fn a_holder_that_is_adopted_or_upgraded_in_an_outage_goes_on_trying(api: Api) {
    let files = TempDir::new();
    let serve = Program::new(&files);
    let device = serve.attach(api, &[], &files.spec("disk.img", MIB));
    serve.goes();
    device.signal_backend(SIGKILL);
    tries(&device, OUTAGE_TRIES);
    ctl(["upgrade", &device.name()]).succeeds();
    tries(&device, OUTAGE_TRIES);
    let holder = device.state().expect("a state").holder;
    assert!(nbd_tests::process::signal(holder.pid, SIGKILL));
    wait_until("its death", EVENT_TIMEOUT, || !holder.is_alive());
    ctl(["adopt", &device.name()]).succeeds();
    tries(&device, OUTAGE_TRIES);
    serve.comes();
    is_readable(&device.path());
    device.detach();
}

fn adoption_keeps_the_restart_limit(api: Api) {
    let files = TempDir::new();
    let serve = Program::new(&files);
    let limit = OUTAGE_TRIES.to_string();
    let device = serve.attach(api, &["--restart-limit", &limit], &files.spec("disk.img", MIB));
    let holder = device.state().expect("a state").holder;
    assert!(nbd_tests::process::signal(holder.pid, SIGKILL));
    wait_until("its death", EVENT_TIMEOUT, || !holder.is_alive());
    ctl(["adopt", &device.name()]).succeeds();
    serve.goes();
    device.signal_backend(SIGKILL);
    wait_until("the holder gives up", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Down
    });
    assert_eq!(lines(&device.log(), "gave-up"), 1);
    serve.comes();
    ctl(["restart", &device.name()]).succeeds();
    is_readable(&device.path());
    device.detach();
}
