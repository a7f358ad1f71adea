//! Requests, answers, and peers that misbehave.

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind, Request, Response};
use nbd_control::process::ProcessId;
use nix::sys::signal::Signal;

use crate::runtime_dir::{Ran, RuntimeDir};
use crate::sample::{dead, done, drain, notice, signal, status};

#[test]
fn requests_are_what_was_typed() {
    let here = std::env::current_dir().unwrap();
    let replaced = |words: &[&str]| Request::Replace {
        program: Some(words.iter().map(ToString::to_string).collect()),
    };
    for (arguments, request) in [
        (&["detach", "nbd0"][..], Request::Detach { force: false }),
        (&["detach", "/dev/nbd0", "--force"], Request::Detach { force: true }),
        (&["restart", "0"], Request::Restart),
        (&["resize", "0", "2G"], Request::Resize { size: Some(2 << 30), force: false }),
        (&["resize", "0", "--to-backend"], Request::Resize { size: None, force: false }),
        (
            &["resize", "0", "512K", "--force"],
            Request::Resize { size: Some(512 << 10), force: true },
        ),
        (&["wait", "0"], Request::WaitReady),
        (&["wait", "0", "--for", "ready"], Request::WaitReady),
        (&["replace", "0"], Request::Replace { program: None }),
        (&["replace", "0", "--", "/bin/sh", "-c", "x"], replaced(&["/bin/sh", "-c", "x"])),
    ] {
        let runtime = RuntimeDir::new();
        let holder = runtime.answers(0, vec![notice("a moment"), done("well done")]);
        let ran = runtime.run(arguments);
        // Who waits for a device has nothing more to be told.
        let said = match arguments[0] {
            "wait" => "nbd-ctl: a moment\n",
            _ => "nbd-ctl: a moment\nnbd-ctl: well done\n",
        };
        ran.succeeded("", said);
        assert_eq!(holder.join().unwrap(), request);
    }
    let runtime = RuntimeDir::new();
    let holder = runtime.answers(0, vec![done("")]);
    let mut command = runtime.command(&["upgrade", "nbd0"]);
    Ran::from(command.env("NBD_HOLDER_PROGRAM", "/bin/true").output().unwrap()).succeeded("", "");
    assert_eq!(holder.join().unwrap(), Request::Upgrade { program: "/bin/true".into() });
    let runtime = RuntimeDir::new();
    let serve = runtime.executable("nbd-serve", "#!/bin/sh\n");
    let holder = runtime.answers(0, vec![done("")]);
    let mut command = runtime.command(&["replace", "nbd0", "file:a.img"]);
    command.env("PATH", serve.parent().unwrap());
    Ran::from(command.output().unwrap()).succeeded("", "");
    let Request::Replace { program: Some(program) } = holder.join().unwrap() else {
        panic!("another request");
    };
    assert!(program[0].ends_with("/nbd-serve"), "{program:?}");
    assert_eq!(program[1..], ["--directory", here.to_str().unwrap(), "file:a.img"]);
}

#[test]
fn settings_are_printed_as_they_are_now() {
    for (arguments, assignments, stdout) in [
        (&["set", "nbd0"][..], &[][..], "error.rate=0.01\ndelay.read=5ms\n"),
        (
            &["set", "nbd0", "error.rate=1%", "--json"],
            &["error.rate=1%"],
            "{\"delay.read\":\"5ms\",\"error.rate\":\"0.01\"}\n",
        ),
    ] {
        let runtime = RuntimeDir::new();
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        let settings = vec![pair("error.rate", "0.01"), pair("delay.read", "5ms")];
        let holder = runtime.answers(0, vec![Response::Settings(settings)]);
        runtime.run(arguments).succeeded(stdout, "");
        let assignments = assignments.iter().map(ToString::to_string).collect();
        assert_eq!(holder.join().unwrap(), Request::Set { assignments });
    }
}

#[test]
fn failures_have_their_exit_status() {
    for (kind, code) in [
        (FailureKind::Other, 1),
        (FailureKind::Usage, 2),
        (FailureKind::NoDevice, 3),
        (FailureKind::Busy, 4),
        (FailureKind::TimedOut, 5),
        (FailureKind::DataLost, 6),
    ] {
        let runtime = RuntimeDir::new();
        let failure = Failure::new(kind, "nbd0: no: never");
        let holder = runtime.answers(0, vec![Response::Failed(failure)]);
        runtime.run(&["detach", "nbd0"]).failed(code, "nbd0: no: never");
        holder.join().unwrap();
    }
}

#[test]
fn errors_peer_garbage() {
    let runtime = RuntimeDir::new();
    let holder = runtime.listen(0, |listener| {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        drain(&stream);
    });
    let ran = runtime.run(&["status", "nbd0"]);
    holder.join().unwrap();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.starts_with(
            "nbd-ctl: nbd0: cannot talk to its holder: the peer does not speak our protocol"
        ),
        "{ran:?}"
    );
}

#[test]
fn errors_peer_version() {
    let runtime = RuntimeDir::new();
    let holder = runtime.listen(0, |listener| {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"nbd-hold\x63\0\0\0").unwrap();
        drain(&stream);
    });
    let ran = runtime.run(&["detach", "nbd0"]);
    holder.join().unwrap();
    ran.failed(
        1,
        "nbd0: cannot talk to its holder: the peer speaks version 99 of the protocol and this \
         program version 1; use programs of one release",
    );
}

#[test]
fn errors_peer_wrong_answer() {
    let runtime = RuntimeDir::new();
    let holder = runtime.answers(0, vec![Response::Status(Box::new(status("nbd0")))]);
    runtime
        .run(&["restart", "nbd0"])
        .failed(1, "nbd0: the answer of its holder does not fit: install programs of one release");
    holder.join().unwrap();
}

#[test]
fn errors_peer_hangs_up() {
    let runtime = RuntimeDir::new();
    let text = "nbd0: its holder ended before it answered; see nbd-ctl logs nbd0";
    let holder = runtime.answers(0, Vec::new());
    runtime.run(&["detach", "nbd0"]).failed(1, text);
    holder.join().unwrap();
    let holder = runtime.listen(0, |listener| drop(listener.accept().unwrap()));
    runtime.run(&["status", "nbd0"]).failed(1, text);
    holder.join().unwrap();
}

#[test]
fn errors_peer_silent() {
    let runtime = RuntimeDir::new();
    let me = ProcessId::of(std::process::id() as i32).unwrap();
    runtime.write_state(0, me, dead());
    let holder = runtime.listen(0, |listener| {
        let (stream, _) = listener.accept().unwrap();
        drain(&stream);
    });
    let start = Instant::now();
    let ran = runtime.run(&["status", "nbd0"]);
    let waited = start.elapsed();
    holder.join().unwrap();
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(5), ""), "{ran:?}");
    let message =
        format!("nbd-ctl: nbd0: no answer within 5 s: its holder (pid {}) is in state ", me.pid);
    assert!(ran.stderr.starts_with(&message), "{ran:?}");
    assert!(waited >= Duration::from_secs(5), "{waited:?}");
}

#[test]
fn timeouts_are_kept() {
    let runtime = RuntimeDir::new();
    for command in ["detach", "wait", "restart", "replace"] {
        let holder = runtime.listen(0, |listener| {
            let (stream, _) = listener.accept().unwrap();
            drain(&stream);
        });
        let ran = runtime.run(&[command, "nbd0", "--timeout", "0.3"]);
        assert_eq!(ran.code, Some(5), "{ran:?}");
        assert!(ran.stderr.contains("no answer within 0.3 s"), "{ran:?}");
        holder.join().unwrap();
    }
}

#[test]
fn ctrl_c_ends_a_wait() {
    let runtime = RuntimeDir::new();
    let holder = runtime.listen(0, |listener| {
        let (stream, _) = listener.accept().unwrap();
        std::fs::write(listener_mark(&listener), "").unwrap();
        drain(&stream);
    });
    let child = runtime
        .command(&["wait", "nbd0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    runtime.appears("run/nbd0/control.accepted");
    signal(&child, Signal::SIGINT);
    Ran::from(child.wait_with_output().unwrap()).failed(
        130,
        "interrupted; nbd0: its holder is still waiting for a backend: see nbd-ctl status nbd0",
    );
    holder.join().unwrap();
}

fn listener_mark(listener: &std::os::unix::net::UnixListener) -> std::path::PathBuf {
    let address = listener.local_addr().unwrap();
    address.as_pathname().unwrap().with_extension("accepted")
}

#[test]
fn waiting_for_gone_ends_with_the_folder() {
    let runtime = RuntimeDir::new();
    runtime.run(&["wait", "nbd0", "--for", "gone"]).succeeded("", "");
    let me = ProcessId::of(std::process::id() as i32).unwrap();
    runtime.write_state(0, me, dead());
    let registry = runtime.registry.clone();
    let waits = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&waits);
    let holder = runtime.listen(0, move |listener| {
        let (stream, _) = listener.accept().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        drop(stream);
        drop(listener);
        std::thread::sleep(Duration::from_millis(200));
        assert!(still.load(Ordering::SeqCst), "it did not wait for the folder");
        registry.remove(0).unwrap();
    });
    runtime.run(&["wait", "nbd0", "--for", "gone"]).succeeded("", "");
    waits.store(false, Ordering::SeqCst);
    holder.join().unwrap();
}

#[test]
fn waiting_for_gone_has_its_limit() {
    let runtime = RuntimeDir::new();
    let listener = runtime.listen(0, |listener| listener).join().unwrap();
    runtime
        .run(&["wait", "nbd0", "--for", "gone", "--timeout", "0.2"])
        .failed(5, "nbd0: still attached after 0.2 s: nbd-ctl detach nbd0 detaches it");
    drop(listener);
}

#[test]
fn words_from_outside_cannot_move_the_cursor() {
    let runtime = RuntimeDir::new();
    let holder = runtime.answers(0, vec![done("a\x1b[2Jb")]);
    runtime.run(&["restart", "nbd0"]).succeeded("", "nbd-ctl: a\\u{1b}[2Jb\n");
    holder.join().unwrap();
}
