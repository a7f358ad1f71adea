//! Devices whose holder is gone, and entries whose processes are all gone.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use nbd_control::control::{Failure, FailureKind, Report, Request};
use nbd_control::process::ProcessId;
use nix::fcntl::{Flock, FlockArg};

use crate::runtime_dir::{Ran, RuntimeDir};
use crate::sample::{Sleeper, dead, done};

fn adopted(runtime: &RuntimeDir) -> String {
    let ready = Report::Ready { path: "/dev/nbd0".into() };
    format!("cat {} >&$fd", runtime.reports(&[ready]).display())
}

/// A socket that nobody listens on any more.
fn abandon_socket(runtime: &RuntimeDir, index: u32) {
    runtime.listen(index, drop::<UnixListener>).join().unwrap();
}

#[test]
fn a_device_without_holder_gets_one_and_the_command_goes_on() {
    let runtime = RuntimeDir::new();
    let elsewhere = runtime.directory.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let sitter = Sleeper::new(&elsewhere);
    runtime.write_state(0, dead(), sitter.id());
    abandon_socket(&runtime, 0);
    let script = adopted(&runtime);
    let child = runtime
        .command_with_holder(&script, &["restart", "nbd0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = runtime.appears("pid");
    let holder = runtime.answers(0, vec![done("")]);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(holder.join().unwrap(), Request::Restart);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // The scripted holder did not write its own pid down.
    assert_eq!(ran.stderr, "nbd-ctl: nbd0: its holder (pid 1) had died; adopted by pid 1\n");
    assert!(!pid.is_empty());
    assert!(runtime.read("arguments").ends_with(" --adopt nbd0\n"));
    assert_eq!(
        runtime.read("cwd").trim_end(),
        elsewhere.to_str().unwrap(),
        "relative paths keep their meaning"
    );
}

#[test]
fn adoption_that_fails_is_told_in_the_holders_words() {
    let runtime = RuntimeDir::new();
    let sitter = Sleeper::new(&runtime.directory);
    runtime.write_state(0, dead(), sitter.id());
    let text = "nbd0: the sitter does not answer; detach it with --force";
    let failed = Report::Failed(Failure::new(FailureKind::Other, text));
    let script = format!("cat {} >&$fd", runtime.reports(&[failed]).display());
    for command in ["adopt", "status", "detach"] {
        let output = runtime.command_with_holder(&script, &[command, "nbd0"]).output();
        Ran::from(output.unwrap()).failed(1, text);
    }
}

#[test]
fn explicit_adoption() {
    let runtime = RuntimeDir::new();
    let sitter = Sleeper::new(&runtime.directory);
    runtime.write_state(0, dead(), sitter.id());
    let script = adopted(&runtime);
    let output = runtime.command_with_holder(&script, &["adopt", "0"]).output();
    let ran = Ran::from(output.unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    assert!(ran.stderr.contains("adopted by pid"), "{ran:?}");
}

#[test]
fn a_live_holder_is_not_replaced() {
    let runtime = RuntimeDir::new();
    let me = ProcessId::of(std::process::id() as i32).unwrap();
    runtime.write_state(0, me, me);
    let listener = runtime.listen(0, |listener| listener).join().unwrap();
    runtime.run(&["adopt", "nbd0"]).failed(
        4,
        &format!("nbd0: its holder (pid {}) is alive: there is nothing to adopt", me.pid),
    );
    drop(listener);
}

#[test]
fn a_stale_entry_is_cleaned_up_by_commands() {
    for command in ["detach", "restart", "replace", "wait", "adopt"] {
        let runtime = RuntimeDir::new();
        runtime.write_state(0, dead(), dead());
        abandon_socket(&runtime, 0);
        fs::write(runtime.registry.join_socket(0), "").unwrap();
        runtime
            .run(&[command, "nbd0"])
            .failed(3, "nbd0 is stale: its processes have died; cleaned up");
        assert!(!runtime.registry.folder(0).exists(), "{command}");
        assert!(!runtime.registry.join_socket(0).exists(), "{command}");
    }
}

#[test]
fn a_stale_entry_is_only_told_about_by_status_and_list() {
    let runtime = RuntimeDir::new();
    runtime.write_state(0, dead(), dead());
    let text = "nbd0 is stale: its processes have died; nbd-ctl detach nbd0 cleans up";
    runtime.run(&["status", "nbd0"]).failed(3, text);
    let ran = runtime.run(&["list"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("stale"), "{ran:?}");
    assert_eq!(ran.stderr, format!("nbd-ctl: {text}\n"));
    assert!(runtime.registry.folder(0).exists());
}

#[test]
fn detach_of_all_cleans_up_and_goes_on_after_a_failure() {
    let runtime = RuntimeDir::new();
    runtime.write_state(0, dead(), dead());
    let busy = Failure::new(FailureKind::Busy, "nbd1: mounted on /mnt; unmount it");
    let first = runtime.answers(1, vec![nbd_control::control::Response::Failed(busy)]);
    let second = runtime.answers(2, vec![done("nbd2: detached")]);
    let ran = runtime.run(&["detach", "--all", "--force"]);
    let force = Request::Detach { force: true };
    assert_eq!(first.join().unwrap(), force);
    assert_eq!(second.join().unwrap(), force);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(
        ran.stderr,
        "nbd-ctl: nbd0 is stale: its processes have died; cleaned up\n\
         nbd-ctl: nbd1: mounted on /mnt; unmount it\n\
         nbd-ctl: nbd2: detached\n"
    );
}

#[test]
fn an_entry_without_state_is_stale() {
    let runtime = RuntimeDir::new();
    runtime.registry.create_folder(0).unwrap();
    runtime
        .run(&["detach", "nbd0"])
        .failed(3, "nbd0 is stale: its processes have died; cleaned up");
    assert!(!runtime.registry.folder(0).exists());
}

/// Holders make the folder and listen on its socket under the lock.
#[test]
fn an_entry_that_is_being_made_is_not_mistaken_for_a_stale_one() {
    let runtime = RuntimeDir::new();
    let file = runtime.registry.lock_file().unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    runtime.registry.create_folder(0).unwrap();
    let child = runtime
        .command(&["restart", "nbd0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let holder = runtime.answers(0, vec![done("")]);
    drop(lock);
    Ran::from(child.wait_with_output().unwrap()).succeeded("", "");
    assert_eq!(holder.join().unwrap(), Request::Restart);
}

#[test]
fn a_registry_that_stays_locked_is_told() {
    let runtime = RuntimeDir::new();
    let file = runtime.registry.lock_file().unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    runtime.registry.create_folder(0).unwrap();
    let path = runtime.registry.directory().join("lock");
    runtime.run(&["detach", "nbd0"]).failed(
        5,
        &format!(
            "{}: locked for more than 5 s by another nbd-ctl or holder: `fuser` on that file shows its pid",
            path.display()
        ),
    );
    assert!(runtime.registry.folder(0).exists());
    drop(lock);
}

#[test]
fn a_holder_that_is_about_to_go_is_waited_for() {
    let runtime = RuntimeDir::new();
    let me = ProcessId::of(std::process::id() as i32).unwrap();
    runtime.write_state(0, me, dead());
    let ran = runtime.run(&["status", "nbd0"]);
    ran.failed(
        5,
        &format!(
            "nbd0: its holder (pid {}) does not listen: it is ending or stopped. Try \
             again, or see {}",
            me.pid,
            runtime.registry.log(0).display()
        ),
    );
    let registry = runtime.registry.clone();
    let remover = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        registry.remove(0).unwrap();
    });
    assert_eq!(runtime.run(&["status", "nbd0"]).code, Some(3));
    remover.join().unwrap();
}

#[test]
fn a_damaged_state_is_left_alone() {
    let runtime = RuntimeDir::new();
    runtime.registry.create_folder(0).unwrap();
    let file = runtime.registry.folder(0).join("state.json");
    fs::write(&file, "{").unwrap();
    let ran = runtime.run(&["detach", "nbd0"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.starts_with(&format!(
            "nbd-ctl: nbd0: its holder has died and it cannot be adopted: nbd-ctl detach --force nbd0 \
             removes what is left: {}: ",
            file.display()
        )),
        "{ran:?}"
    );
    assert!(file.exists());
}

/// A device is not adopted with a default in place of what its holder was told.
#[test]
fn a_state_with_an_unknown_value_is_left_alone_and_names_file_field_and_value() {
    let runtime = RuntimeDir::new();
    runtime.write_state(0, dead(), ProcessId::of(std::process::id().cast_signed()).unwrap());
    let file = runtime.registry.folder(0).join("state.json");
    let known = fs::read_to_string(&file).unwrap();
    for (field, from, to) in [("kernel_api", "ioctl", "telepathy"), ("restart", "always", "often")]
    {
        let (from, to) = (format!("\"{field}\": \"{from}\""), format!("\"{field}\": \"{to}\""));
        assert!(known.contains(&from), "{known}");
        fs::write(&file, known.replace(&from, &to)).unwrap();
        for command in ["adopt", "status", "detach"] {
            let ran = runtime.run(&[command, "nbd0"]);
            assert_eq!(ran.code, Some(1), "{ran:?}");
            assert!(ran.stderr.contains(&format!("{}: {to}: ", file.display())), "{ran:?}");
        }
        assert!(file.exists());
    }
}

/// A folder is locked by its device's holder for life.
#[test]
fn an_entry_whose_folder_is_locked_is_not_cleaned_up() {
    let runtime = RuntimeDir::new();
    runtime.write_state(0, dead(), dead());
    let lock = runtime.registry.lock_folder(0).unwrap().unwrap();
    let ran = runtime.run(&["detach", "nbd0"]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(runtime.registry.folder(0).exists());
    drop(lock);
    runtime
        .run(&["detach", "nbd0"])
        .failed(3, "nbd0 is stale: its processes have died; cleaned up");
}

#[test]
fn a_backend_that_is_left_is_told_of_and_not_forgotten() {
    let runtime = RuntimeDir::new();
    let backend = Sleeper::new(&runtime.directory);
    runtime.write_state(0, dead(), dead());
    let mut state = runtime.registry.read_state(0).unwrap().unwrap();
    state.backend = Some(backend.id());
    runtime.registry.write_state(&state).unwrap();
    let left = format!(
        "nbd0: its holder and its sitter are gone, and the device with them; its backend (pid {}) is \
         left: nbd-ctl detach nbd0 takes it down",
        backend.id().pid
    );
    for command in ["status", "restart", "adopt", "wait"] {
        runtime.run(&[command, "nbd0"]).failed(1, &left);
    }
    let ran = runtime.run(&["list"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("abandoned"), "{ran:?}");
    assert!(runtime.registry.folder(0).exists());
}
