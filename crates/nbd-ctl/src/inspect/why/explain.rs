//! From facts to words: who waits for what, whether anything is lost, and the way out.

use nbd_control::status::{BackendState, RequestStatus, Stage, Status};
use nbd_control::text::printable;

use super::above::Above;
use super::explanation::{Explanation, MAX_LISTED, Remedy, Verdict, way};
use super::facts::Facts;
use super::process::Process;
use super::words::{describe, doing};
use crate::inspect::listed::{Listed, Orphan};

/// Requests that are younger are on their way, and nothing is wrong with that.
const MIN_WAIT_MS: u64 = 1000;

/// Explains a device.
pub(crate) fn explain(facts: &Facts) -> Explanation {
    let device = facts.listed.device().to_owned();
    let (verdict, cause, mut details, ways_out) = match &facts.listed {
        Listed::Attached(status) => attached(facts, status),
        Listed::Orphaned(orphan) => orphaned(facts, orphan),
        Listed::Ending { .. } => ending(facts, &device),
        Listed::Abandoned { connected, .. } => abandoned(facts, &device, *connected),
        Listed::Stale { .. } => (
            Verdict::Stale,
            "all its processes have died; nothing serves it".into(),
            Vec::new(),
            vec![way(format!("nbd-ctl detach {device}"), "removes what is left")],
        ),
        Listed::Unreachable { detail, .. } => (
            Verdict::HolderSilent,
            format!("its holder does not answer: {detail}"),
            vec!["I/O does not need the holder and goes on".into()],
            vec![way(format!("nbd-ctl logs {device}"), "shows its last messages")],
        ),
    };
    let requests = match &facts.listed {
        Listed::Attached(status) => status.in_flight.clone(),
        _ => Vec::new(),
    };
    if !matches!(verdict, Verdict::Nothing | Verdict::Failed | Verdict::Failing) {
        details.extend(unsent(facts, &requests));
    }
    details.extend(facts.above.iter().map(on_top));
    Explanation {
        device,
        verdict,
        cause,
        details,
        ways_out,
        waiters: facts.waiters.clone(),
        requests,
        block_layer: facts.block_layer,
        above: facts.above.clone(),
    }
}

fn on_top(above: &Above) -> String {
    let what = format!("{} is on {}", above.description, above.below);
    match &above.closed_by {
        Some(command) => format!("{what}; `{command}` closes it"),
        None => what,
    }
}

type Told = (Verdict, String, Vec<String>, Vec<Remedy>);

const NOTHING_LOST: &str = "nothing is lost: what is unanswered is executed when it goes on";

fn attached(facts: &Facts, status: &Status) -> Told {
    let (verdict, cause, ways) = by_backend(facts, status);
    let mut details = Vec::new();
    let waits = !status.in_flight.is_empty();
    if waits && !matches!(verdict, Verdict::Nothing | Verdict::Failed | Verdict::Failing) {
        details.push(NOTHING_LOST.to_owned());
    }
    if let Some(doing) = &status.under_way {
        details.push(format!("its holder is just {doing}"));
    }
    details.extend(suspects(status));
    let verdict = match sitter(facts, status) {
        Some(sentence) => {
            details.push(sentence);
            if verdict == Verdict::Nothing { Verdict::SitterGone } else { verdict }
        }
        None => verdict,
    };
    (verdict, cause, details, ways)
}

fn by_backend(facts: &Facts, status: &Status) -> (Verdict, String, Vec<Remedy>) {
    let device = &status.device;
    let eio = |kill: &str| {
        way(format!("nbd-ctl fail {kill}{device}"), "answers what waits with EIO; the device stays")
    };
    let restart = |effect: &str| way(format!("nbd-ctl restart {device}"), effect);
    let held = |verdict, cause: String, first: Remedy| (verdict, cause, vec![first, eio("")]);
    match status.backend.state {
        BackendState::Stopped => stopped(facts, status, eio("--kill ")),
        BackendState::Running => running(facts, status, eio("--kill ")),
        BackendState::Starting => held(
            Verdict::Starting,
            with_detail("a backend has been started and does not serve yet", status),
            way(
                format!("nbd-ctl status {device}"),
                "shows its state; nbd-ctl logs shows its messages",
            ),
        ),
        BackendState::Restarting if facts.backend.is_some() => fencing(facts, device),
        BackendState::Restarting => held(
            Verdict::Restarting,
            match status.backend.retry.is_some() {
                true => with_detail("its backend does not come back", status),
                false => "its backend has ended, and another one starts in a moment".into(),
            },
            restart("starts it at once"),
        ),
        BackendState::Waiting => held(
            Verdict::NoBackend,
            "it has no backend, and none is started: it waits for one to join".into(),
            match status.backend.program.is_empty() {
                true => way(format!("nbd-serve --join {device} SPEC"), "serves it"),
                false => restart("starts the program of its attach"),
            },
        ),
        BackendState::Down => held(
            Verdict::Down,
            format!("its backend is not started again: {}", status.backend.detail),
            restart("tries again, after you have mended the program"),
        ),
        BackendState::Paused => held(
            Verdict::Paused,
            "the operator has paused it".into(),
            way(format!("nbd-ctl resume {device}"), "lets it go on"),
        ),
        BackendState::Failing => (
            Verdict::Failing,
            match &status.backend.retry {
                Some(_) => with_detail("requests are answered with EIO", status),
                None => "it has no backend, and requests are answered with EIO".into(),
            },
            vec![restart("starts the program of its attach, which serves later requests")],
        ),
        BackendState::Failed => (
            Verdict::Failed,
            format!("it has failed and answers everything with EIO: {}", status.backend.detail),
            vec![way(
                format!("nbd-ctl detach {device}"),
                "then attach it again and check its data",
            )],
        ),
    }
}

/// A sentence, and what else the holder says of the backend.
fn with_detail(sentence: &str, status: &Status) -> String {
    match status.backend.detail.as_str() {
        "" => sentence.to_owned(),
        detail => format!("{sentence}: {detail}"),
    }
}

fn pid_of(process: Option<&Process>, status: &Status) -> i32 {
    process.map(|process| process.pid).or(status.backend.pid).unwrap_or(0)
}

fn who(process: Option<&Process>, status: &Status) -> String {
    let name = process.map_or("", |process| process.name.as_str());
    format!("the backend {} (pid {})", printable(name, &[]), pid_of(process, status))
}

fn stopped(facts: &Facts, status: &Status, eio: Remedy) -> (Verdict, String, Vec<Remedy>) {
    let backend = facts.backend.as_ref();
    let who = who(backend, status);
    match backend.and_then(|backend| backend.tracer.as_ref()) {
        Some(tracer) => (
            Verdict::Traced,
            format!(
                "{who} is stopped by {} (pid {}), at a breakpoint or by hand",
                printable(&tracer.name, &[]),
                tracer.pid
            ),
            vec![
                way(
                    "continue there, or detach the debugger",
                    "the backend goes on where it was stopped",
                ),
                way("kill it there", "a successor executes again what is unanswered"),
                eio,
            ],
        ),
        None => (
            Verdict::Stopped,
            format!("{who} is stopped by a signal, like SIGSTOP"),
            vec![
                way(
                    format!("kill -CONT {}", pid_of(backend, status)),
                    "the backend goes on where it was stopped",
                ),
                way(
                    format!("nbd-ctl restart {}", status.device),
                    "replaces it; the successor executes again what is unanswered",
                ),
                eio,
            ],
        ),
    }
}

fn running(facts: &Facts, status: &Status, eio: Remedy) -> (Verdict, String, Vec<Remedy>) {
    let device = &status.device;
    let backend = facts.backend.as_ref();
    let who = who(backend, status);
    let oldest = status.in_flight.first().map_or(0, |oldest| oldest.age_ms);
    if oldest < MIN_WAIT_MS {
        let cause = match status.in_flight.len() {
            0 => "nothing waits: it is served, and no request is in flight".into(),
            count => format!("nothing is stuck: {count} requests are being served"),
        };
        return (Verdict::Nothing, cause, Vec::new());
    }
    let restart =
        way(format!("nbd-ctl restart {device}"), "replaces it; its successor tries again");
    if let Some(blocked) = backend.filter(|backend| backend.state == 'D') {
        let cause = format!(
            "{who} waits in the kernel for its own storage: {}",
            doing(blocked).unwrap_or_else(|| "nothing more can be told".into())
        );
        return (Verdict::Blocked, cause, blocked_ways(facts, device));
    }
    if let Some(image) = ceph_image(&status.backend.description) {
        let cause = format!("{who} runs and waits for the Ceph cluster that has {image}");
        let health = way(
            "ceph health detail",
            "tells what the cluster waits for; I/O goes on by itself when that is mended",
        );
        return (Verdict::Slow, cause, vec![health, restart, eio]);
    }
    let unread = status.in_flight.iter().all(|request| request.stage == Stage::Unread);
    let cause = match unread {
        true => format!("{who} runs and has not read what waits for it"),
        false => format!("{who} runs and is slow to answer: it waits for something of its own"),
    };
    let debug = way(
        format!("nbd-ctl debug {device}"),
        "shows what it does; the device only waits meanwhile",
    );
    (Verdict::Slow, cause, vec![debug, restart, eio])
}

/// The image that a backend serves, below whatever layers, if it is one of a Ceph cluster.
fn ceph_image(description: &str) -> Option<&str> {
    let is_start = |at: &usize| *at == 0 || description[..*at].ends_with(['@', ':']);
    let (at, _) = description.match_indices("rbd:").find(|(at, _)| is_start(at))?;
    Some(&description[at..])
}

/// Killing it would not help: the signal waits until its system call returns, which is when its
/// request would have been answered.
fn blocked_ways(facts: &Facts, device: &str) -> Vec<Remedy> {
    let storage = facts.storage.iter().map(|below| {
        way(format!("nbd-ctl why {below}"), "explains its storage, which is an NBD device too")
    });
    let mend = way(
        "see to its storage",
        "I/O goes on when the storage answers; the backend cannot die before",
    );
    let force = way(
        format!("nbd-ctl detach --force {device}"),
        "gives the device up, with EIO for all that waits",
    );
    storage.chain([mend, force]).collect()
}

fn fencing(facts: &Facts, device: &str) -> (Verdict, String, Vec<Remedy>) {
    let Some(backend) = &facts.backend else {
        return (Verdict::Restarting, "its backend is being replaced".into(), Vec::new());
    };
    let pid = backend.pid;
    let (why, out) = match (&backend.tracer, backend.state) {
        (Some(tracer), _) => (
            format!("{} (pid {}) traces it, so it does not die", tracer.name, tracer.pid),
            way(format!("end pid {}", tracer.pid), "lets the backend die"),
        ),
        (None, 'D') => (
            format!(
                "it waits in the kernel for its own storage: {}",
                doing(backend).unwrap_or_else(|| "nothing more can be told".into())
            ),
            way("see to that storage", "the backend dies when its system call returns"),
        ),
        (None, _) => ("it is dying".into(), way("wait", "that takes milliseconds")),
    };
    let cause = format!(
        "the killed backend (pid {pid}) is not dead yet, and until then no other backend may serve: {}",
        printable(&why, &[])
    );
    let force = way(format!("nbd-ctl detach --force {device}"), "gives the device up, with EIO");
    (Verdict::Fencing, cause, vec![out, force])
}

/// Requests that were being executed when backends crashed.
fn suspects(status: &Status) -> Vec<String> {
    let suspects = status.in_flight.iter().filter(|request| request.crashes > 0);
    suspects
        .take(MAX_LISTED)
        .map(|request| {
            format!(
                "{} was being executed when {} backends crashed: it is tried alone, and gets EIO if it crashes more of them",
                describe(request),
                request.crashes
            )
        })
        .collect()
}

/// Requests that the driver has begun and no backend has seen. Who sends them sticks in the driver,
/// mostly a thread of the kernel's own that is not among those who wait.
fn unsent(facts: &Facts, requests: &[RequestStatus]) -> Option<String> {
    let sends = |waiter: &Process| waiter.doing.is_some_and(|doing| doing.contains("sending to"));
    let full = facts.waiters.iter().any(|waiter| {
        waiter.doing.is_some_and(|doing| doing.contains("the socket is full")) || sends(waiter)
    });
    let stuck = requests.first().is_some_and(|oldest| oldest.age_ms >= MIN_WAIT_MS);
    let unsent = stuck && facts.block_layer > requests.len() as u64;
    (full || unsent).then(|| {
        format!(
            "the socket to the backend is full: of {} requests {} have been sent, and a thread that sends more waits in the driver until the backend reads or is replaced",
            facts.block_layer.max(requests.len() as u64),
            requests.len()
        )
    })
}

fn sitter(facts: &Facts, status: &Status) -> Option<String> {
    match &facts.sitter {
        Some(sitter) if !matches!(sitter.state, 'Z' | 'X') => None,
        _ if status.kernel_api == "ioctl" => {
            Some("its sitter has died, so the driver removes the device".into())
        }
        _ => Some(
            "its sitter has died: I/O goes on, but no holder could adopt the device any more. Detach it and attach it again when convenient"
                .into(),
        ),
    }
}

fn orphaned(facts: &Facts, orphan: &Orphan) -> Told {
    let device = &orphan.device;
    let adopt = way(format!("nbd-ctl adopt {device}"), "starts a holder for it");
    let cause = match &facts.backend {
        Some(backend) if matches!(backend.state, 'T' | 't') => format!(
            "its backend (pid {}) is stopped, and its holder (pid {}) has died",
            backend.pid, orphan.holder_pid
        ),
        Some(backend) => format!(
            "its holder (pid {}) has died; I/O goes on: the backend (pid {}) needs no holder",
            orphan.holder_pid, backend.pid
        ),
        None => format!(
            "its backend has died, and so has its holder (pid {}), which would start another one",
            orphan.holder_pid
        ),
    };
    let mut details = Vec::new();
    if facts.block_layer > 0 {
        details.push(NOTHING_LOST.to_owned());
    }
    (Verdict::HolderGone, cause, details, vec![adopt])
}

fn abandoned(facts: &Facts, device: &str, connected: bool) -> Told {
    let detach = |effect: &str| way(format!("nbd-ctl detach {device}"), effect);
    let force = || {
        let what = format!("nbd-ctl detach --force {device}");
        way(what, "gives up unwritten data")
    };
    let (cause, ways) = match (&facts.backend, connected) {
        (Some(backend), true) => (
            format!(
                "its holder and its sitter have died, so it cannot be adopted; its backend (pid {}) still serves it, and when that ends, I/O fails with EIO",
                backend.pid
            ),
            vec![detach("writes back and detaches it; then attach it again"), force()],
        ),
        (Some(backend), false) => (
            format!(
                "its holder and its sitter have died, and the kernel has removed the device; its backend (pid {}) is left",
                backend.pid
            ),
            vec![detach("ends the backend and removes the rest")],
        ),
        (None, _) => (
            "all its processes have died, and the kernel still has the device: nothing serves it, \
             and I/O fails or waits"
                .into(),
            vec![detach("answers what waits with EIO and frees the device")],
        ),
    };
    (Verdict::Abandoned, cause, Vec::new(), ways)
}

fn ending(facts: &Facts, device: &str) -> Told {
    let Some(holder) = &facts.holder else {
        return (Verdict::Ending, "it is being detached".into(), Vec::new(), Vec::new());
    };
    let pid = holder.pid;
    match holder.state {
        'T' | 't' => (
            Verdict::HolderSilent,
            format!("its holder (pid {pid}) is stopped; I/O goes on without it"),
            Vec::new(),
            vec![way(format!("kill -CONT {pid}"), "lets it answer again")],
        ),
        _ => (
            Verdict::Ending,
            format!("its holder (pid {pid}) does not listen: it is ending"),
            Vec::new(),
            vec![way(format!("nbd-ctl wait {device} --for gone"), "waits for that")],
        ),
    }
}

#[cfg(test)]
mod tests;
