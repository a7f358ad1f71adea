//! What list and status print, and where.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use nbd_control::channel::GREETING;
use nbd_control::control::{Request, Response};
use nbd_control::status::Status;
use nix::sys::signal::Signal;

use crate::runtime_dir::{Ran, RuntimeDir};
use crate::sample::{Sleeper, dead, done, drain, signal, status};

fn answer(device: &str) -> Vec<Response> {
    vec![Response::Status(Box::new(status(device)))]
}

#[test]
fn nothing_attached() {
    let runtime = RuntimeDir::new();
    runtime.run(&["list"]).succeeded("", "nbd-ctl: nothing is attached\n");
    runtime.run(&["list", "--json"]).succeeded("[]\n", "");
    runtime.run(&["status", "--json"]).succeeded("[]\n", "");
    runtime.run(&["detach", "--all"]).succeeded("", "nbd-ctl: nothing is attached\n");
    let elsewhere = ["--runtime-dir", "/nonexistent/run", "list"];
    runtime.run(&elsewhere).succeeded("", "nbd-ctl: nothing is attached\n");
}

#[test]
fn status_is_a_block_of_text() {
    let runtime = RuntimeDir::new();
    let holder = runtime.answers(0, answer("nbd0"));
    let ran = runtime.run(&["status", "nbd0"]);
    assert_eq!(holder.join().unwrap(), Request::Status);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.starts_with("nbd0\n  path       /dev/nbd0\n"));
}

#[test]
fn status_as_json_is_the_status_and_its_kind() {
    let runtime = RuntimeDir::new();
    let holder = runtime.answers(0, answer("nbd0"));
    let ran = runtime.run(&["status", "nbd0", "--json"]);
    holder.join().unwrap();
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(value["entry"], "attached");
    assert_eq!(value["export"]["size"], 1 << 20);
    assert_eq!(value["backend"]["state"], "running");
    let told: Status = serde_json::from_value(value).unwrap();
    assert_eq!(told, status("nbd0"));
}

#[test]
fn a_list_tells_of_all_and_asks_them_at_once() {
    let runtime = RuntimeDir::new();
    let sitter = Sleeper::new(&runtime.directory);
    let first = runtime.answers(0, answer("nbd0"));
    runtime.write_state(1, dead(), sitter.id());
    runtime.write_state(2, dead(), dead());
    let both_asked = Arc::new(Barrier::new(2));
    let silent = |index| {
        let both_asked = Arc::clone(&both_asked);
        runtime.listen(index, move |listener| {
            let (mut stream, _) = listener.accept().unwrap();
            both_asked.wait();
            // Too little for an answer, and too much for somebody who has hung up.
            stream.write_all(&GREETING[..1]).expect("both are asked before one is given up");
            drain(&stream);
        })
    };
    let others = [silent(3), silent(4)];
    let ran = runtime.run(&["list", "--json"]);
    first.join().unwrap();
    for other in others {
        other.join().unwrap();
    }
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 4, "{ran:?}");
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let entries: Vec<_> = value
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["device"].as_str().unwrap(), entry["entry"].as_str().unwrap()))
        .collect();
    assert_eq!(
        entries,
        [
            ("nbd0", "attached"),
            ("nbd1", "orphaned"),
            ("nbd2", "stale"),
            ("nbd3", "unreachable"),
            ("nbd4", "unreachable"),
        ]
    );
    assert_eq!(value[1]["sitter_pid"], sitter.id().pid);
    let detail = value[4]["detail"].as_str().unwrap();
    assert!(detail.contains("no answer within 5 s"), "{detail}");
    assert!(runtime.registry.folder(2).exists(), "list changes nothing");
}

#[test]
fn the_name_of_a_device_is_in_every_answer() {
    let runtime = RuntimeDir::new();
    runtime.registry.create_folder(0).unwrap();
    runtime.registry.write_properties(0, Some("backup"), false).unwrap();
    let run = |arguments: &[&str]| {
        let holder = runtime.answers(0, answer("nbd0"));
        let ran = runtime.run(arguments);
        holder.join().unwrap();
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    };
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert!(run(&["status", "backup"]).contains("\n  name       backup\n"));
    assert!(run(&["status"]).contains("\n  name       backup\n"));
    assert_eq!(run(&["list", "-o", "name,device"]), "NAME    DEVICE\nbackup  nbd0\n");
    assert!(run(&["list"]).starts_with("DEVICE  NAME  "));
    assert_eq!(json(&run(&["list", "--json"]))[0]["name"], "backup");
    let status = json(&run(&["status", "nbd0", "--json"]));
    assert_eq!((&status["name"], &status["used_by"]), (&"backup".into(), &serde_json::json!([])));
}

#[test]
fn the_log_of_a_device_that_is_gone_is_found_by_its_name() {
    let runtime = RuntimeDir::new();
    runtime.registry.create_folder(0).unwrap();
    std::fs::write(runtime.registry.log(0), "last words\n").unwrap();
    runtime.registry.write_properties(0, Some("backup"), false).unwrap();
    runtime.registry.remove(0).unwrap();
    runtime.run(&["logs", "backup"]).succeeded(
        "last words\n",
        "nbd-ctl: nbd0 is not attached: this is the log of its last attach\n",
    );
    runtime.run(&["logs", "other"]).failed(
        2,
        "other: not an NBD device, and no attached device has this name: give it as nbd0, /dev/nbd0 or 0, \
         or by a name that nbd-ctl list shows",
    );
}

#[test]
fn a_device_that_is_not_attached_yet_can_be_waited_for() {
    let runtime = RuntimeDir::new();
    let wait = |name| ["wait", name, "--for", "attached", "--timeout", "0.2"];
    for name in ["nbd0", "backup"] {
        let words = "nbd-ctl list shows what is attached, nbd-ctl logs";
        let text = format!("{name}: not attached after 0.2 s: {words} {name} why it is not");
        runtime.run(&wait(name)).failed(5, &text);
    }
    runtime
        .run(&wait("/dev/sda"))
        .failed(2, "/dev/sda: not an NBD device: give it as nbd0, /dev/nbd0 or 0");
    let mut command = runtime.command(&["wait", "backup", "--for", "attached"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    runtime.registry.create_folder(0).unwrap();
    runtime.registry.write_properties(0, Some("backup"), false).unwrap();
    let holder = runtime.answers(0, vec![done("")]);
    assert_eq!(holder.join().unwrap(), Request::WaitReady);
    Ran::from(child.wait_with_output().unwrap()).succeeded("", "");
}

#[test]
fn events_are_told_of_devices_of_now_and_later_through_rotation_and_end() {
    let runtime = RuntimeDir::new();
    let registry = &runtime.registry;
    let log = |index, text: &str| {
        let file = OpenOptions::new().create(true).append(true).open(registry.log(index));
        file.unwrap()
            .write_all(format!("nbd-kernel-holder: nbd{index}: {text}\n").as_bytes())
            .unwrap();
    };
    registry.create_folder(0).unwrap();
    log(0, "before event=attach");
    let mut child = runtime.command(&["events", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, told) = channel();
    std::thread::spawn(move || {
        for line in output.lines() {
            let value: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert!(value["time"].as_str().unwrap().ends_with('Z'), "{value}");
            let text = |key: &str| value[key].as_str().unwrap().to_owned();
            let told = format!("{} {}", text("device"), text("event"));
            if sender.send(told).is_err() {
                return;
            }
        }
    });
    // What was there at the first look is not told: the first look is over once this is.
    registry.create_folder(1).unwrap();
    while told.recv_timeout(Duration::from_millis(100)).is_err() {
        log(1, "again event=probe");
    }
    let next = || loop {
        let told = told.recv_timeout(Duration::from_secs(60)).unwrap();
        if told != "nbd1 probe" {
            return told;
        }
    };
    registry.create_folder(2).unwrap();
    log(2, "later event=attach");
    assert_eq!(next(), "nbd2 attach");
    log(0, "full event=ready");
    std::fs::rename(registry.log(0), registry.old_log(0)).unwrap();
    log(0, "words of no event");
    log(0, "anew event=poison");
    assert_eq!([next(), next()], ["nbd0 ready", "nbd0 poison"]);
    log(2, "gone event=detached");
    registry.remove(2).unwrap();
    assert_eq!(next(), "nbd2 detached");
    signal(&child, Signal::SIGINT);
    assert!(child.wait().unwrap().success());
    runtime
        .run(&["events", "nbd7"])
        .failed(3, "nbd7: no such attached device (attached: nbd0, nbd1; see nbd-ctl list)");
}

#[test]
fn a_watched_list_goes_on_until_ctrl_c() {
    let runtime = RuntimeDir::new();
    runtime.registry.create_folder(1).unwrap();
    let mut command = runtime.command(&["list", "-o", "device,state", "--watch=0.1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    for _ in 0..3 {
        assert_eq!((line().as_str(), line().as_str()), ("DEVICE  STATE", "nbd1    stale"));
    }
    signal(&child, Signal::SIGINT);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let runtime = RuntimeDir::new();
    for arguments in [&["list"][..], &["status", "--json"], &["status", "nbd0"]] {
        let holder = runtime.answers(0, answer("nbd0"));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = runtime.command(arguments);
        command.stdout(writer).stderr(Stdio::piped());
        let ran = Ran::from(command.spawn().unwrap().wait_with_output().unwrap());
        ran.succeeded("", "");
        holder.join().unwrap();
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let runtime = RuntimeDir::new();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = runtime.command(&["list", "--json"]);
    command.stdout(full);
    Ran::from(command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap())
        .failed(1, "cannot write to standard output: No space left on device (os error 28): make room there (`df`, `df -i`)");
}
