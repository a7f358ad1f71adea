//! Devices whose holder is gone, and entries whose processes are all gone.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use nbd_control::control::{Failure, FailureKind, Report, Request};
use nbd_control::process::ProcessId;
use nix::fcntl::{Flock, FlockArg};

use crate::sample::{Sleeper, dead, done};
use crate::world::{Ran, World};

fn adopted(world: &World) -> String {
    let ready = Report::Ready { path: "/dev/nbd0".into() };
    format!("cat {} >&$fd", world.reports(&[ready]).display())
}

/// A socket that nobody listens on any more.
fn abandon_socket(world: &World, index: u32) {
    world.listen(index, drop::<UnixListener>).join().unwrap();
}

#[test]
fn a_device_without_holder_gets_one_and_the_command_goes_on() {
    let world = World::new();
    let elsewhere = world.directory.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let sitter = Sleeper::new(&elsewhere);
    world.write_state(0, dead(), sitter.id());
    abandon_socket(&world, 0);
    let script = adopted(&world);
    let child = world
        .command_with_holder(&script, &["restart", "nbd0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = world.appears("pid");
    let holder = world.answers(0, vec![done("")]);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(holder.join().unwrap(), Request::Restart);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // The scripted holder did not write its own pid down.
    assert_eq!(ran.stderr, "nbd-ctl: nbd0: its holder (pid 1) is gone; adopted by pid 1\n");
    assert!(!pid.is_empty());
    assert!(world.read("arguments").ends_with(" --adopt nbd0\n"));
    assert_eq!(
        world.read("cwd").trim_end(),
        elsewhere.to_str().unwrap(),
        "relative paths keep their meaning"
    );
}

#[test]
fn adoption_that_fails_is_told_in_the_holders_words() {
    let world = World::new();
    let sitter = Sleeper::new(&world.directory);
    world.write_state(0, dead(), sitter.id());
    let text = "nbd0: the sitter does not answer; detach it with --force";
    let failed = Report::Failed(Failure::new(FailureKind::Other, text));
    let script = format!("cat {} >&$fd", world.reports(&[failed]).display());
    for command in ["adopt", "status", "detach"] {
        let output = world.command_with_holder(&script, &[command, "nbd0"]).output();
        Ran::from(output.unwrap()).failed(1, text);
    }
}

#[test]
fn explicit_adoption() {
    let world = World::new();
    let sitter = Sleeper::new(&world.directory);
    world.write_state(0, dead(), sitter.id());
    let script = adopted(&world);
    let output = world.command_with_holder(&script, &["adopt", "0"]).output();
    let ran = Ran::from(output.unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    assert!(ran.stderr.contains("adopted by pid"), "{ran:?}");
}

#[test]
fn a_live_holder_is_not_replaced() {
    let world = World::new();
    let me = ProcessId::of(std::process::id() as i32).unwrap();
    world.write_state(0, me, me);
    let listener = world.listen(0, |listener| listener).join().unwrap();
    world.run(&["adopt", "nbd0"]).failed(
        4,
        &format!("nbd0: its holder (pid {}) is alive: there is nothing to adopt", me.pid),
    );
    drop(listener);
}

#[test]
fn a_stale_entry_is_cleaned_up_by_commands() {
    for command in ["detach", "restart", "replace", "wait", "adopt"] {
        let world = World::new();
        world.write_state(0, dead(), dead());
        abandon_socket(&world, 0);
        fs::write(world.registry.join_socket(0), "").unwrap();
        world
            .run(&[command, "nbd0"])
            .failed(3, "nbd0 is stale: its processes are gone; cleaned up");
        assert!(!world.registry.folder(0).exists(), "{command}");
        assert!(!world.registry.join_socket(0).exists(), "{command}");
    }
}

#[test]
fn a_stale_entry_is_only_told_about_by_status_and_list() {
    let world = World::new();
    world.write_state(0, dead(), dead());
    let text = "nbd0 is stale: its processes are gone; nbd-ctl detach nbd0 cleans up";
    world.run(&["status", "nbd0"]).failed(3, text);
    let ran = world.run(&["list"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("stale"), "{ran:?}");
    assert_eq!(ran.stderr, format!("nbd-ctl: {text}\n"));
    assert!(world.registry.folder(0).exists());
}

#[test]
fn detach_of_all_cleans_up_and_goes_on_after_a_failure() {
    let world = World::new();
    world.write_state(0, dead(), dead());
    let busy = Failure::new(FailureKind::Busy, "nbd1: mounted on /mnt; unmount it");
    let first = world.answers(1, vec![nbd_control::control::Response::Failed(busy)]);
    let second = world.answers(2, vec![done("nbd2: detached")]);
    let ran = world.run(&["detach", "--all", "--force"]);
    let force = Request::Detach { force: true };
    assert_eq!(first.join().unwrap(), force);
    assert_eq!(second.join().unwrap(), force);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(
        ran.stderr,
        "nbd-ctl: nbd0 is stale: its processes are gone; cleaned up\n\
         nbd-ctl: nbd1: mounted on /mnt; unmount it\n\
         nbd-ctl: nbd2: detached\n"
    );
}

#[test]
fn an_entry_without_state_is_stale() {
    let world = World::new();
    world.registry.create_folder(0).unwrap();
    world.run(&["detach", "nbd0"]).failed(3, "nbd0 is stale: its processes are gone; cleaned up");
    assert!(!world.registry.folder(0).exists());
}

/// Holders make the folder and listen on its socket under the lock.
#[test]
fn an_entry_that_is_being_made_is_not_mistaken_for_a_stale_one() {
    let world = World::new();
    let file = world.registry.lock_file().unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    world.registry.create_folder(0).unwrap();
    let child = world
        .command(&["restart", "nbd0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let holder = world.answers(0, vec![done("")]);
    drop(lock);
    Ran::from(child.wait_with_output().unwrap()).succeeded("", "");
    assert_eq!(holder.join().unwrap(), Request::Restart);
}

#[test]
fn a_registry_that_stays_locked_is_told() {
    let world = World::new();
    let file = world.registry.lock_file().unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    world.registry.create_folder(0).unwrap();
    let path = world.registry.directory().join("lock");
    world.run(&["detach", "nbd0"]).failed(
        5,
        &format!(
            "{}: locked for more than 5 s: another nbd-ctl or holder is stuck",
            path.display()
        ),
    );
    assert!(world.registry.folder(0).exists());
    drop(lock);
}

#[test]
fn a_holder_that_is_about_to_go_is_waited_for() {
    let world = World::new();
    let me = ProcessId::of(std::process::id() as i32).unwrap();
    world.write_state(0, me, dead());
    let ran = world.run(&["status", "nbd0"]);
    ran.failed(
        5,
        &format!(
            "nbd0: its holder (pid {}) does not listen: it is about to go, or stopped; try \
             again, or see {}",
            me.pid,
            world.registry.log(0).display()
        ),
    );
    let registry = world.registry.clone();
    let remover = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        registry.remove(0).unwrap();
    });
    assert_eq!(world.run(&["status", "nbd0"]).code, Some(3));
    remover.join().unwrap();
}

#[test]
fn a_damaged_state_is_left_alone() {
    let world = World::new();
    world.registry.create_folder(0).unwrap();
    let file = world.registry.folder(0).join("state.json");
    fs::write(&file, "{").unwrap();
    let ran = world.run(&["detach", "nbd0"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.starts_with(&format!(
            "nbd-ctl: nbd0: its holder is gone and it cannot be adopted; nbd-ctl detach --force nbd0 \
             takes down what is left: {}: ",
            file.display()
        )),
        "{ran:?}"
    );
    assert!(file.exists());
}

/// A device is not adopted with a default in place of what its holder was told.
#[test]
fn a_state_with_an_unknown_value_is_left_alone_and_names_file_field_and_value() {
    let world = World::new();
    world.write_state(0, dead(), ProcessId::of(std::process::id().cast_signed()).unwrap());
    let file = world.registry.folder(0).join("state.json");
    let known = fs::read_to_string(&file).unwrap();
    for (field, from, to) in [("kernel_api", "ioctl", "telepathy"), ("restart", "always", "often")]
    {
        let (from, to) = (format!("\"{field}\": \"{from}\""), format!("\"{field}\": \"{to}\""));
        assert!(known.contains(&from), "{known}");
        fs::write(&file, known.replace(&from, &to)).unwrap();
        for command in ["adopt", "status", "detach"] {
            let ran = world.run(&[command, "nbd0"]);
            assert_eq!(ran.code, Some(1), "{ran:?}");
            assert!(ran.stderr.contains(&format!("{}: {to}: ", file.display())), "{ran:?}");
        }
        assert!(file.exists());
    }
}

/// A folder is locked by its device's holder for life.
#[test]
fn an_entry_whose_folder_is_locked_is_not_cleaned_up() {
    let world = World::new();
    world.write_state(0, dead(), dead());
    let lock = world.registry.lock_folder(0).unwrap().unwrap();
    let ran = world.run(&["detach", "nbd0"]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(world.registry.folder(0).exists());
    drop(lock);
    world.run(&["detach", "nbd0"]).failed(3, "nbd0 is stale: its processes are gone; cleaned up");
}

#[test]
fn a_backend_that_is_left_is_told_of_and_not_forgotten() {
    let world = World::new();
    let backend = Sleeper::new(&world.directory);
    world.write_state(0, dead(), dead());
    let mut state = world.registry.read_state(0).unwrap().unwrap();
    state.backend = Some(backend.id());
    world.registry.write_state(&state).unwrap();
    let left = format!(
        "nbd0: its holder and its sitter are gone, and the device with them; its backend (pid {}) is \
         left: nbd-ctl detach nbd0 takes it down",
        backend.id().pid
    );
    for command in ["status", "restart", "adopt", "wait"] {
        world.run(&[command, "nbd0"]).failed(1, &left);
    }
    let ran = world.run(&["list"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("abandoned"), "{ran:?}");
    assert!(world.registry.folder(0).exists());
}
