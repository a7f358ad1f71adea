//! What is known of devices, as text for people.

use nbd_control::latency::LatencyStatus;
use nbd_control::status::{PoisonStatus, RecoveryStatus, RequestStatus, Stage, Status};
use nbd_control::text::printable;

use crate::inspect::listed::{Entry, Listed, state_name};
use crate::text::table::{Align, age, columns, command_line, size, span};

/// Most requests in flight that a status shows.
const MAX_SHOWN_REQUESTS: usize = 20;
/// A cell without value.
pub(crate) const NO_VALUE: &str = "-";

/// All about one device, if its holder has told it.
pub(crate) fn status(entry: &Entry) -> Option<String> {
    let Listed::Attached(status) = &entry.listed else { return None };
    let mut lines = vec![status.device.clone()];
    let mut add = |name: &str, value: &str| {
        lines.push(format!("  {name:<10} {}", printable(value, &[])));
    };
    let export = &status.export;
    if let Some(name) = &entry.name {
        add("name", name);
    }
    add("path", &status.path);
    add(
        "size",
        &format!(
            "{} ({} bytes), blocks of {} bytes",
            size(export.size),
            export.size,
            export.block_size
        ),
    );
    add("access", if status.read_only { "read-only" } else { "read and write" });
    for user in &entry.used_by {
        add("in use", user);
    }
    add("kernel api", &format!("{}, {}", status.kernel_api, count(status.lanes, "lane")));
    match status.on_backend_loss.as_str() {
        "hold" => {}
        policy => add("on loss", policy),
    }
    add("holder", &format!("pid {}", status.holder_pid));
    add("sitter", &sitter(status));
    add("backend", &backend(status));
    if !status.backend.detail.is_empty() {
        add("", &status.backend.detail);
    }
    add("serves", &some(&status.backend.description));
    match status.backend.program.as_slice() {
        [] => add("program", "none: backends join by hand"),
        program => add("program", &command_line(program)),
    }
    if let Some(path) = &status.recording {
        add("recorded", &format!("requests and their data, to {path}"));
    }
    add("restarts", &status.backend.restarts.to_string());
    if let Some(last) = &status.last_recovery {
        add("last loss", &recovery(last));
    }
    add("answered", &totals(status));
    for kind in &status.latencies {
        if let Some(text) = latency(kind) {
            add("took", &text);
        }
    }
    for poison in &status.poisoned {
        add("given up", &given_up(poison));
    }
    add("in flight", &in_flight(&status.in_flight));
    let mut text = join(&lines);
    text.push_str(&requests(&status.in_flight));
    Some(text)
}

/// What may become of the process on which an ioctl device depends, and why that is.
fn sitter(status: &Status) -> String {
    let pid = format!("pid {}", status.sitter_pid);
    match (status.kernel_api.as_str(), status.sitter_tracer_pid) {
        ("ioctl", Some(tracer)) if tracer == status.holder_pid => {
            format!("{pid}, in NBD_DO_IT; shielded from debuggers by the trace of its holder")
        }
        ("ioctl", Some(tracer)) => {
            format!("{pid}, in NBD_DO_IT; traced by pid {tracer}, which can end the device")
        }
        ("ioctl", None) => format!(
            "{pid}, in NBD_DO_IT; not shielded: a debugger that attaches to it ends the device"
        ),
        (_, Some(tracer)) => format!("{pid}, traced by pid {tracer}"),
        (_, None) => pid,
    }
}

pub(crate) fn backend(status: &Status) -> String {
    let backend = &status.backend;
    let mut text = state_name(backend.state).to_string();
    if let Some(pid) = backend.pid {
        text.push_str(&format!(", pid {pid}"));
    }
    if let Some(letter) = backend.process_state {
        text.push_str(&format!(", process state {letter}"));
    }
    if let Some(tracer) = backend.tracer_pid {
        text.push_str(&format!(", traced by pid {tracer}"));
    }
    text
}

pub(crate) fn recovery(last: &RecoveryStatus) -> String {
    let mut text = format!("{}, {} ago", last.cause, age(last.ago_ms as u64));
    match last.ready_ms {
        Some(time) => text.push_str(&format!("; ready after {time:.1} ms")),
        None => text.push_str("; no successor yet"),
    }
    if let Some(time) = last.first_answer_ms {
        text.push_str(&format!(", first answer after {time:.1} ms"));
    }
    if let Some(replayed) = last.replayed {
        text.push_str(&format!(", {} replayed", count(replayed, "request")));
    }
    text
}

fn totals(status: &Status) -> String {
    let totals = &status.totals;
    format!(
        "{} ({}), {} ({}), {}, {}, {}, {}",
        count(totals.reads, "read"),
        size(totals.read_bytes),
        count(totals.writes, "write"),
        size(totals.written_bytes),
        plural(totals.flushes, "flush", "flushes"),
        count(totals.trims, "trim"),
        count(totals.others, "other"),
        count(totals.errors, "error"),
    )
}

fn latency(kind: &LatencyStatus) -> Option<String> {
    let [median, p99, p999, max] =
        [kind.median_ms?, kind.p99_ms?, kind.p999_ms?, kind.max_ms?].map(span);
    let command = printable(&kind.command, &[]);
    Some(format!("{command}: p50 {median}, p99 {p99}, p99.9 {p999}, max {max}"))
}

fn given_up(poison: &PoisonStatus) -> String {
    format!(
        "{} {}+{}: answered with EIO {} ago, as it crashed {}, the last one {}",
        poison.command,
        poison.offset,
        poison.length,
        age(poison.ago_ms as u64),
        count(poison.crashes, "backend"),
        poison.cause,
    )
}

fn in_flight(requests: &[RequestStatus]) -> String {
    match requests.first() {
        None => "none".into(),
        Some(oldest) => format!(
            "{}, the oldest for {}",
            count(requests.len() as u64, "request"),
            age(oldest.age_ms)
        ),
    }
}

/// The requests in flight as a table, oldest first.
fn requests(requests: &[RequestStatus]) -> String {
    use Align::{Left, Right};
    if requests.is_empty() {
        return String::new();
    }
    let header = [
        ("AGE", Right),
        ("COMMAND", Left),
        ("OFFSET", Right),
        ("LENGTH", Right),
        ("STAGE", Left),
        ("ATTEMPTS", Right),
        ("LANE", Right),
        ("COOKIE", Left),
    ];
    let rows: Vec<[String; 8]> = requests
        .iter()
        .take(MAX_SHOWN_REQUESTS)
        .map(|request| {
            [
                age(request.age_ms),
                printable(&request.command, &[]),
                request.offset.to_string(),
                request.length.to_string(),
                stage_name(request.stage).to_string(),
                request.attempts.to_string(),
                request.lane.to_string(),
                printable(&request.cookie, &[]),
            ]
        })
        .collect();
    let mut lines = columns(header, &rows);
    if requests.len() > MAX_SHOWN_REQUESTS {
        lines.push(format!("… and {} more", requests.len() - MAX_SHOWN_REQUESTS));
    }
    let lines: Vec<String> = lines.iter().map(|line| format!("    {line}")).collect();
    join(&lines)
}

pub(crate) const fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Unread => "unread",
        Stage::Queued => "queued",
        Stage::Executing => "executing",
    }
}

pub(crate) fn some(text: &str) -> String {
    match text {
        "" => NO_VALUE.to_string(),
        text => printable(text, &[]),
    }
}

pub(crate) fn number(pid: Option<i32>) -> String {
    pid.map_or_else(|| NO_VALUE.to_string(), |pid| pid.to_string())
}

pub(crate) fn count(number: impl Into<u64>, one: &str) -> String {
    plural(number, one, &format!("{one}s"))
}

fn plural(number: impl Into<u64>, one: &str, many: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number => format!("{number} {many}"),
    }
}

pub(crate) fn join(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
pub(crate) mod tests;
