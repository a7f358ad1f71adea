//! Every stuck state has its words and a way out. Most of these states are also made for real, in
//! `tests/tests/kernel_why.rs`.

use nbd_control::backend::ExportInfo;
use nbd_control::status::{BackendStatus, TotalsStatus};

use super::super::process::Tracer;
use super::super::words::{self, text};
use super::*;
use crate::device::Device;

fn status(state: BackendState) -> Status {
    Status {
        device: "nbd0".into(),
        path: "/dev/nbd0".into(),
        export: ExportInfo { size: 1 << 20, block_size: 512, flags: 1 },
        read_only: false,
        kernel_api: "netlink".into(),
        lanes: 1,
        on_backend_loss: "hold".into(),
        under_way: None,
        recording: None,
        holder_pid: 10,
        sitter_pid: 11,
        sitter_tracer_pid: None,
        backend: BackendStatus {
            state,
            detail: String::new(),
            pid: Some(12),
            process_state: None,
            tracer_pid: None,
            description: String::new(),
            program: vec!["/bin/nbd-serve".into()],
            restarts: 0,
            retry: None,
        },
        in_flight: Vec::new(),
        totals: TotalsStatus::default(),
        latencies: Vec::new(),
        last_recovery: None,
        poisoned: Vec::new(),
    }
}

fn read(age_ms: u64, stage: Stage) -> RequestStatus {
    RequestStatus {
        lane: 0,
        command: "read".into(),
        offset: 4096,
        length: 512,
        cookie: "1".into(),
        stage,
        age_ms,
        attempts: 0,
        crashes: 0,
    }
}

fn process(pid: i32, name: &str, state: char) -> Process {
    Process { pid, name: name.into(), state, ..Process::default() }
}

fn traced(mut process: Process) -> Process {
    process.tracer = Some(Tracer { pid: 20, name: "gdb".into() });
    process
}

/// A device with a backend in this state, and one read that dd waits for.
fn stuck(state: BackendState, backend: Option<Process>) -> Facts {
    let mut status = status(state);
    status.in_flight = vec![read(12_300, Stage::Unread)];
    status.backend.pid = backend.as_ref().map(|backend| backend.pid);
    Facts {
        listed: Listed::Attached(Box::new(status)),
        holder: Some(process(10, "nbd-kernel-hold", 'S')),
        sitter: Some(process(11, "nbd-kernel-hold", 'S')),
        backend,
        waiters: vec![process(30, "dd", 'D')],
        above: Vec::new(),
        storage: Vec::new(),
        block_layer: 1,
    }
}

fn change(facts: &mut Facts, change: impl FnOnce(&mut Status)) {
    let Listed::Attached(status) = &mut facts.listed else { panic!("not attached") };
    change(status);
}

/// Panics unless the explanation has this verdict, says all these words and shows a way out.
#[track_caller]
fn says(facts: &Facts, verdict: Verdict, words: &[&str]) {
    let told = explain(facts);
    assert_eq!(told.verdict, verdict);
    let text = text(&told);
    for word in words {
        assert!(text.contains(word), "nothing of \"{word}\" in:\n{text}");
    }
}

fn backend(state: char) -> Option<Process> {
    Some(process(12, "nbd-serve", state))
}

#[test]
fn a_stopped_backend() {
    says(
        &stuck(BackendState::Stopped, backend('T')),
        Verdict::Stopped,
        &[
            "nbd-serve (pid 12) is stopped by a signal",
            "dd (pid 30) waits; it is for read 4096+512, for at least 12.3 s: no backend has read it",
            "nothing is lost",
            "kill -CONT 12",
            "nbd-ctl restart nbd0",
            "nbd-ctl fail --kill nbd0",
        ],
    );
}

#[test]
fn a_backend_in_a_debugger() {
    let facts = stuck(BackendState::Stopped, backend('t').map(traced));
    let words = [
        "stopped by gdb (pid 20)",
        "or detach the debugger",
        "nothing is lost",
        "fail --kill nbd0",
    ];
    says(&facts, Verdict::Traced, &words);
}

#[test]
fn a_dead_backend_that_nobody_starts() {
    let mut facts = stuck(BackendState::Waiting, None);
    says(&facts, Verdict::NoBackend, &["no backend", "nbd-ctl restart nbd0", "nbd-ctl fail nbd0"]);
    change(&mut facts, |status| status.backend.program.clear());
    says(&facts, Verdict::NoBackend, &["nbd-serve --join nbd0"]);
    let mut facts = stuck(BackendState::Down, None);
    change(&mut facts, |status| status.backend.detail = "it failed too often".into());
    says(
        &facts,
        Verdict::Down,
        &["it failed too often", "nbd-ctl restart nbd0", "nothing is lost"],
    );
}

#[test]
fn a_backend_that_is_about_to_come() {
    let starting = stuck(BackendState::Starting, backend('S'));
    says(&starting, Verdict::Starting, &["does not serve yet", "nbd-ctl status nbd0"]);
    let restarting = stuck(BackendState::Restarting, None);
    says(&restarting, Verdict::Restarting, &["in a moment", "nbd-ctl restart"]);
}

#[test]
fn a_killed_backend_that_does_not_die() {
    let mut stack = process(12, "nbd-serve", 'D');
    stack.stack = vec!["rpc_wait_bit_killable".into()];
    let facts = stuck(BackendState::Restarting, Some(stack));
    let words = ["not dead yet", "sleeps in rpc_wait_bit_killable", "detach --force nbd0"];
    says(&facts, Verdict::Fencing, &words);
    let facts = stuck(BackendState::Restarting, backend('t').map(traced));
    says(&facts, Verdict::Fencing, &["gdb (pid 20) traces it", "end pid 20"]);
    says(&stuck(BackendState::Restarting, backend('S')), Verdict::Fencing, &["milliseconds"]);
}

#[test]
fn suspects_of_having_crashed_backends() {
    let mut facts = stuck(BackendState::Running, backend('S'));
    change(&mut facts, |status| status.in_flight[0].crashes = 2);
    says(&facts, Verdict::Slow, &["read 4096+512 was being executed when 2 backends crashed"]);
}

#[test]
fn a_full_socket() {
    let mut facts = stuck(BackendState::Stopped, backend('T'));
    facts.waiters[0].doing = Some("sends to the backend; the socket is full");
    facts.block_layer = 9;
    let words = ["dd (pid 30) waits: sends", "is full: of 9 requests 1 have been sent"];
    says(&facts, Verdict::Stopped, &words);
    // A thread of the kernel's sends, which nobody takes for one who waits.
    facts.waiters[0].doing = None;
    says(&facts, Verdict::Stopped, &words[1..]);
    facts.block_layer = 1;
    assert!(!text(&explain(&facts)).contains("is full"));
}

#[test]
fn a_paused_device() {
    let facts = stuck(BackendState::Paused, None);
    says(&facts, Verdict::Paused, &["paused it", "nbd-ctl resume nbd0", "nbd-ctl fail nbd0"]);
}

#[test]
fn a_device_that_answers_with_eio() {
    let failing = stuck(BackendState::Failing, backend('S'));
    says(&failing, Verdict::Failing, &["answered with EIO", "nbd-ctl restart nbd0"]);
    let failed = stuck(BackendState::Failed, None);
    says(&failed, Verdict::Failed, &["failed", "nbd-ctl detach nbd0"]);
    assert!(!text(&explain(&failed)).contains("nothing is lost"));
}

#[test]
fn a_lost_sitter() {
    let mut facts = stuck(BackendState::Running, backend('S'));
    change(&mut facts, |status| status.in_flight.clear());
    facts.sitter = None;
    says(&facts, Verdict::SitterGone, &["no holder could adopt", "Detach it"]);
    change(&mut facts, |status| status.kernel_api = "ioctl".into());
    says(&facts, Verdict::SitterGone, &["the driver removes the device"]);
}

#[test]
fn something_under_way() {
    let mut facts = stuck(BackendState::Stopped, backend('T'));
    change(&mut facts, |status| status.under_way = Some("detaching".into()));
    says(&facts, Verdict::Stopped, &["its holder is just detaching"]);
}

fn orphan(backend: Option<Process>) -> Facts {
    let orphan = Orphan {
        device: "nbd0".into(),
        holder_pid: 10,
        sitter_pid: 11,
        backend_pid: backend.as_ref().map(|backend| backend.pid),
        description: String::new(),
        export: ExportInfo { size: 1 << 20, block_size: 512, flags: 1 },
        lanes: 1,
        restarts: 0,
    };
    Facts { listed: Listed::Orphaned(Box::new(orphan)), ..stuck(BackendState::Running, backend) }
}

#[test]
fn a_dead_holder() {
    let adopt = "nbd-ctl adopt nbd0";
    says(&orphan(backend('S')), Verdict::HolderGone, &["I/O goes on", adopt]);
    says(&orphan(backend('T')), Verdict::HolderGone, &["stopped", adopt]);
    says(&orphan(None), Verdict::HolderGone, &["its backend has died, and so has", adopt]);
}

#[test]
fn a_holder_that_does_not_answer() {
    let listed = |holder_pid| Listed::Ending { device: "nbd0".into(), holder_pid };
    let mut facts = Facts { listed: listed(10), ..stuck(BackendState::Running, None) };
    says(&facts, Verdict::Ending, &["does not listen"]);
    facts.holder = Some(process(10, "nbd-kernel-hold", 'T'));
    says(&facts, Verdict::HolderSilent, &["kill -CONT 10"]);
    facts.listed =
        Listed::Unreachable { device: "nbd0".into(), detail: "no answer".into(), forbidden: false };
    says(&facts, Verdict::HolderSilent, &["no answer", "goes on"]);
    facts.listed = Listed::Stale { device: "nbd0".into(), detail: String::new() };
    says(&facts, Verdict::Stale, &["nbd-ctl detach nbd0"]);
}

#[test]
fn a_slow_backend_and_one_that_its_own_storage_blocks() {
    let mut slow = stuck(BackendState::Running, backend('S'));
    says(&slow, Verdict::Slow, &["has not read what waits", "nbd-ctl debug nbd0"]);
    change(&mut slow, |status| status.in_flight[0].stage = Stage::Executing);
    says(&slow, Verdict::Slow, &["slow to answer", "being executed"]);
    for (layers, image) in [("", "rbd:rbd/disk"), ("log@", "rbd:rbd/disk"), ("cow:", "rbd:a/b+c")] {
        change(&mut slow, |status| status.backend.description = format!("{layers}{image}"));
        says(&slow, Verdict::Slow, &["the Ceph cluster that has rbd:", "ceph health detail"]);
    }
    change(&mut slow, |status| status.backend.description = "file:/srv/rbd:disk".into());
    says(&slow, Verdict::Slow, &["slow to answer"]);
    let mut blocked = stuck(BackendState::Running, backend('D'));
    says(&blocked, Verdict::Blocked, &["its own storage: nothing more can be told"]);
    blocked.backend.as_mut().unwrap().doing = Some("flushes");
    blocked.storage = vec![Device(5)];
    let words = ["its own storage: flushes", "nbd-ctl why nbd5", "nbd-ctl detach --force nbd0"];
    says(&blocked, Verdict::Blocked, &words);
    // It would not die, and what it has done would be thrown away.
    assert!(!text(&explain(&blocked)).contains("fail"));
}

#[test]
fn what_is_stacked_on_a_device_is_named_with_what_closes_it() {
    let mut facts = stuck(BackendState::Stopped, backend('T'));
    facts.above = vec![Above {
        name: "dm-0".into(),
        below: "nbd0".into(),
        description: "dm-0 (secret, LUKS)".into(),
        closed_by: Some("cryptsetup close secret".into()),
    }];
    let words = ["dm-0 (secret, LUKS) is on nbd0; `cryptsetup close secret` closes it"];
    says(&facts, Verdict::Stopped, &words);
}

#[test]
fn nothing_at_all() {
    let mut facts = stuck(BackendState::Running, backend('S'));
    change(&mut facts, |status| status.in_flight[0].age_ms = 3);
    says(&facts, Verdict::Nothing, &["nothing is stuck: 1 requests are being served"]);
    change(&mut facts, |status| status.in_flight.clear());
    facts.waiters.clear();
    says(&facts, Verdict::Nothing, &["nothing waits"]);
    assert!(!text(&explain(&facts)).contains("ways out"));
}

#[test]
fn many_requests_and_processes_are_counted_and_not_all_told() {
    let mut facts = stuck(BackendState::Stopped, backend('T'));
    change(&mut facts, |status| status.in_flight = vec![read(5000, Stage::Queued); 20]);
    facts.waiters = vec![process(30, "fio", 'D'); 9];
    let words = ["… and 12 more requests", "… and 1 more processes", "read by a backend"];
    says(&facts, Verdict::Stopped, &words);
}

#[test]
fn names_of_processes_cannot_talk_to_the_terminal() {
    let mut facts = stuck(BackendState::Stopped, Some(process(12, "a\x1b[2J", 'T')));
    facts.waiters[0].name = "b\x1b[2J".into();
    assert!(!text(&explain(&facts)).contains('\x1b'));
}

#[test]
fn a_process_is_told_what_it_does() {
    let mut dd = process(30, "dd", 'D');
    dd.doing = Some("reads");
    let told = words::process(&dd, &[], false);
    assert_eq!(told, "dd (pid 30) waits in the kernel and cannot be interrupted: reads");
    let shell = traced(process(31, "sh", 't'));
    let told = words::process(&shell, &["the backend of nbd0".into()], true);
    for words in ["traced by gdb (pid 20)", "it is the backend of nbd0", "no attached NBD device"] {
        assert!(told.contains(words), "{told}");
    }
}
