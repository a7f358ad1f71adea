//! Starting a holder: what it is told, and what becomes of its reports.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind, Report, Request};
use nbd_control::process::{ProcessId, is_dead};
use nix::sys::signal::Signal;

use crate::runtime_dir::{Ran, RuntimeDir};
use crate::sample::{done, signal};

fn ready() -> Report {
    Report::Ready { path: "/dev/nbd0".into() }
}

fn spawn(runtime: &RuntimeDir, script: &str, arguments: &[&str]) -> Child {
    runtime
        .command_with_holder(script, arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: Child) -> Ran {
    Ran::from(child.wait_with_output().unwrap())
}

#[test]
fn a_ready_device_is_printed_and_notices_are_words() {
    let runtime = RuntimeDir::new();
    let notice = Report::Notice { text: "nbd0: join with NBD_JOIN=nbd0 PROGRAM".into() };
    let reports = runtime.reports(&[notice, ready()]);
    let script = format!("cat {} >&$fd; exec sleep 0.2", reports.display());
    let arguments = ["attach", "--external", "--device", "/dev/nbd0"];
    let output = runtime.command_with_holder(&script, &arguments).output();
    Ran::from(output.unwrap())
        .succeeded("/dev/nbd0\n", "nbd-ctl: nbd0: join with NBD_JOIN=nbd0 PROGRAM\n");
    let directory = runtime.registry.directory().display();
    let told = runtime.read("arguments");
    assert!(told.starts_with(&format!("--runtime-dir {directory} --report-fd ")), "{told}");
    assert!(told.ends_with(" --device nbd0 --external\n"), "{told}");
}

#[test]
fn a_device_whose_path_cannot_be_told_is_detached_again() {
    let run = |runtime: &RuntimeDir| {
        let reports = runtime.reports(&[ready()]);
        let script = format!("cat {} >&$fd; exec sleep 0.2", reports.display());
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = runtime.command_with_holder(&script, &["attach", "--external"]);
        let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        finish(child)
    };
    let runtime = RuntimeDir::new();
    let holder = runtime.answers(0, vec![done("")]);
    let ran = run(&runtime);
    assert_eq!(holder.join().unwrap(), Request::Detach { force: false });
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let told = "nbd-ctl: cannot print /dev/nbd0 to standard output; it is detached again: No space";
    assert!(ran.stderr.starts_with(told), "{ran:?}");
    let ran = run(&RuntimeDir::new());
    let told = "it is attached: nbd-ctl detach /dev/nbd0 takes it away: No space left";
    assert!(ran.stderr.contains(told), "{ran:?}");
}

#[test]
fn every_option_reaches_the_holder() {
    let runtime = RuntimeDir::new();
    let reports = runtime.reports(&[ready()]);
    let script = format!("cat {} >&$fd", reports.display());
    let arguments = [
        "--runtime-dir",
        "relative",
        "attach",
        "--kernel-api=netlink",
        "--poison-limit=2",
        "--restart=always",
        "--restart-limit=9",
        "--user=nobody",
        "--ready-timeout=30",
        "--",
        "sh",
        "--lanes",
    ];
    let mut command = runtime.command_with_holder(&script, &arguments);
    command.current_dir(&runtime.directory);
    Ran::from(command.output().unwrap()).succeeded("/dev/nbd0\n", "");
    let told = runtime.read("arguments");
    let (option, rest) = told.split_once(" --report-fd ").unwrap();
    let here = runtime.directory.display();
    assert_eq!(option, format!("--runtime-dir {here}/relative"));
    let (_, rest) = rest.split_once(' ').unwrap();
    let (options, program) = rest.split_once(" -- ").unwrap();
    assert_eq!(
        options,
        "--kernel-api=netlink --poison-limit=2 --ready-timeout=30 --restart=always \
         --restart-limit=9 --user=nobody"
    );
    assert!(program.starts_with('/') && program.ends_with("/sh --lanes\n"), "{program}");
    assert_eq!(runtime.read("cwd").trim_end(), here.to_string(), "the directory stays");
}

#[test]
fn a_spec_is_served_by_nbd_serve() {
    let runtime = RuntimeDir::new();
    runtime.executable("nbd-serve", "#!/bin/sh\n");
    let reports = runtime.reports(&[ready()]);
    let script = format!("cat {} >&$fd", reports.display());
    let mut command = runtime.command_with_holder(&script, &["attach", "file:disk.img"]);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", runtime.directory.display()));
    Ran::from(command.output().unwrap()).succeeded("/dev/nbd0\n", "");
    let told = runtime.read("arguments");
    let (options, program) = told.split_once(" -- ").unwrap();
    assert!(options.ends_with(" --warm-spare"), "{options}");
    assert!(program.starts_with('/'), "{program}");
    assert!(program.ends_with("/nbd-serve file:disk.img\n"), "{program}");
}

#[test]
fn a_failure_is_told_in_the_holders_words() {
    let runtime = RuntimeDir::new();
    let text = "nbd0: busy: mounted on /mnt; unmount it";
    let failure = Failure::new(FailureKind::Busy, text);
    let reports = runtime.reports(&[Report::Failed(failure)]);
    let script = format!("cat {} >&$fd", reports.display());
    finish(spawn(&runtime, &script, &["attach", "--external"])).failed(4, text);
}

#[test]
fn a_holder_that_exits_without_a_word() {
    let runtime = RuntimeDir::new();
    let script = "exit 3";
    finish(spawn(&runtime, script, &["attach", "--external"])).failed(
        1,
        "nbd-kernel-holder died before the device was ready (exit status: 3); it has left no log",
    );
    let attach = ["attach", "--external", "--device=7"];
    let died = "nbd-kernel-holder died before the device was ready (exit status: 3)";
    finish(spawn(&runtime, script, &attach)).failed(1, &format!("{died}; nbd7 has no log"));
    std::fs::create_dir_all(runtime.registry.folder(7)).unwrap();
    std::fs::write(runtime.registry.log(7), "first\nlast words\n").unwrap();
    let words = "its log ends with: last words (nbd-ctl logs nbd7 shows more)";
    finish(spawn(&runtime, script, &attach)).failed(1, &format!("{died}; {words}"));
}

#[test]
fn a_holder_that_is_killed() {
    let runtime = RuntimeDir::new();
    let ran = finish(spawn(&runtime, "kill -9 $$", &["attach", "--external"]));
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("(signal: 9 (SIGKILL))"), "{ran:?}");
}

#[test]
fn a_holder_that_talks_nonsense_is_hung_up_on() {
    let runtime = RuntimeDir::new();
    let script = "echo GET / HTTP/1.0 >&$fd; cat <&$fd >/dev/null";
    let ran = finish(spawn(&runtime, script, &["attach", "--external"]));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("the peer does not speak our protocol"), "{ran:?}");
    let pid = runtime.read("pid").trim().parse().unwrap();
    assert!(is_dead(pid));
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    for sent in [Signal::SIGINT, Signal::SIGTERM] {
        let runtime = RuntimeDir::new();
        // It sees the end of the connection and takes its time to tear down.
        let script = "cat <&$fd >/dev/null; sleep 0.3";
        let child = spawn(&runtime, script, &["attach", "--external"]);
        let pid: i32 = runtime.appears("pid").trim().parse().unwrap();
        signal(&child, sent);
        finish(child).failed(130, "interrupted; nothing is attached");
        assert!(is_dead(pid), "the holder outlived nbd-ctl");
    }
}

#[test]
fn a_device_that_is_ready_at_the_moment_of_ctrl_c_is_detached() {
    let runtime = RuntimeDir::new();
    let holder = runtime.answers(0, vec![done("")]);
    let reports = runtime.reports(&[ready()]);
    let script = format!(
        "cat <&$fd >/dev/null; cat {} >&$fd; exec sleep 600 >/dev/null 2>&1",
        reports.display()
    );
    let child = spawn(&runtime, &script, &["attach", "--external"]);
    let pid: i32 = runtime.appears("pid").trim().parse().unwrap();
    signal(&child, Signal::SIGINT);
    finish(child).failed(130, "interrupted; nothing is attached");
    assert_eq!(holder.join().unwrap(), Request::Detach { force: false });
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
}

#[test]
fn a_holder_that_does_not_end_is_given_ten_seconds() {
    let runtime = RuntimeDir::new();
    let child = spawn(&runtime, "exec sleep 600 >/dev/null 2>&1", &["attach", "--external"]);
    let pid: i32 = runtime.appears("pid").trim().parse().unwrap();
    let start = Instant::now();
    signal(&child, Signal::SIGINT);
    let ran = finish(child);
    let waited = start.elapsed();
    assert!(ProcessId::of(pid).is_some());
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    ran.failed(
        130,
        &format!(
            "interrupted; nbd-kernel-holder (pid {pid}) has not ended within 10 s: see nbd-ctl \
             list for what is attached"
        ),
    );
    assert!(waited >= Duration::from_secs(10), "{waited:?}");
}
