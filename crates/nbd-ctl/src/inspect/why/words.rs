//! An explanation, and what it is about, in words for people.

use nbd_control::status::{RequestStatus, Stage};
use nbd_control::text::printable;

use super::explanation::{Explanation, MAX_LISTED, Remedy, Verdict};
use super::process::Process;
use crate::text::table::age;

/// An explanation for people.
pub(crate) fn text(told: &Explanation) -> String {
    let mut lines = vec![format!("{}: {}", told.device, printable(&told.cause, &[]))];
    let waiting: Vec<&RequestStatus> = match told.verdict {
        Verdict::Nothing => Vec::new(),
        _ => told.requests.iter().collect(),
    };
    match (&told.waiters[..], &waiting[..]) {
        ([one], [only]) => {
            lines.push(format!("  {}; it is for {}", waiter(one), request(only)));
        }
        (waiters, waiting) => {
            lines.extend(listed(waiters, waiter, "processes"));
            lines.extend(listed(waiting, |one| request(one), "requests"));
        }
    }
    lines.extend(told.details.iter().map(|detail| format!("  {}", printable(detail, &[]))));
    if !told.ways_out.is_empty() {
        lines.push("  ways out:".into());
    }
    let width = told.ways_out.iter().map(|way| way.what.chars().count()).max().unwrap_or(0);
    for Remedy { what, effect } in &told.ways_out {
        lines.push(format!("    {what:<width$}  {effect}"));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The cause alone, if something is the matter.
pub(crate) fn in_short(told: &Explanation) -> Option<String> {
    (told.verdict != Verdict::Nothing).then(|| printable(&told.cause, &[]))
}

fn listed<T>(all: &[T], say: impl Fn(&T) -> String, what: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        all.iter().take(MAX_LISTED).map(|one| format!("  {}", say(one))).collect();
    if all.len() > MAX_LISTED {
        lines.push(format!("  … and {} more {what}", all.len() - MAX_LISTED));
    }
    lines
}

/// What a process does, seen from itself.
pub(crate) fn process(process: &Process, roles: &[String], alone: bool) -> String {
    let name = format!("{} (pid {})", printable(&process.name, &[]), process.pid);
    let state = match process.state {
        'D' => "waits in the kernel and cannot be interrupted",
        'T' => "is stopped by a signal",
        't' => "is stopped by its tracer",
        'Z' => "is dead, and its parent has not reaped it",
        'R' => "runs",
        _ => "sleeps, and can be interrupted",
    };
    let mut text = format!("{name} {state}");
    if let Some(words) = doing(process) {
        text.push_str(&format!(": {words}"));
    }
    if let Some(tracer) = &process.tracer {
        let tracer = format!("{} (pid {})", printable(&tracer.name, &[]), tracer.pid);
        text.push_str(&format!("; it is traced by {tracer}"));
    }
    if !roles.is_empty() {
        text.push_str(&format!("; it is {}", roles.join(" and ")));
    }
    if alone {
        text.push_str("; it uses no attached NBD device");
    }
    text
}

fn request(request: &RequestStatus) -> String {
    let stage = match request.stage {
        // Of requests that came together the later ones can be a little older than is known.
        Stage::Unread => {
            let seen = age(request.age_ms);
            return format!("{}, for at least {seen}: no backend has read it", describe(request));
        }
        Stage::Queued => "read by a backend, not begun",
        Stage::Executing => "being executed",
    };
    format!("{}, for {}: {stage}", describe(request), age(request.age_ms))
}

fn waiter(process: &Process) -> String {
    let doing = doing(process).map(|words| format!(": {words}")).unwrap_or_default();
    format!("{} (pid {}) waits{doing}", printable(&process.name, &[]), process.pid)
}

pub(super) fn doing(process: &Process) -> Option<String> {
    let inside = process.wchan.as_ref().or(process.stack.first());
    match (process.doing, inside) {
        (Some(words), _) => Some(words.to_owned()),
        (None, Some(function)) => Some(format!("it sleeps in {function}")),
        (None, None) => None,
    }
}

pub(super) fn describe(request: &RequestStatus) -> String {
    let command = printable(&request.command, &[]);
    match request.length {
        0 => command,
        length => format!("{command} {}+{length}", request.offset),
    }
}
