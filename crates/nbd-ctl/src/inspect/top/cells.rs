//! A device as a row of a table.

use std::fs;
use std::time::Instant;

use nbd_control::latency::LatencyStatus;
use nbd_control::status::{BackendState, Status};
use nbd_control::text::printable;

use crate::inspect::listed::{Listed, state_name, state_style};
use crate::inspect::top::model::Row;
use crate::inspect::top::rates::Rates;
use crate::text::style::CellStyle;
use crate::text::table::{Align, age, span};

/// A column.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) align: Align,
    pub(crate) width: usize,
    /// Terminals that are narrower do without.
    pub(crate) least: usize,
}

const fn column(name: &'static str, align: Align, width: usize, least: usize) -> Column {
    Column { name, align, width, least }
}

/// The columns, of which 80 characters have room for all but three.
pub(crate) const COLUMNS: [Column; 13] = [
    column("DEVICE", Align::Left, 6, 0),
    column("STATE", Align::Left, 10, 0),
    column("IOPS", Align::Right, 7, 0),
    column("READ/s", Align::Right, 7, 0),
    column("WRITE/s", Align::Right, 7, 0),
    column("p50", Align::Right, 7, 72),
    column("p99", Align::Right, 7, 0),
    column("p99.9", Align::Right, 7, 88),
    column("MAX", Align::Right, 7, 96),
    column("DEPTH", Align::Right, 5, 64),
    column("OLDEST", Align::Right, 7, 64),
    column("RESTART", Align::Right, 7, 80),
    column("NAME", Align::Left, 10, 112),
];
/// A cell without value.
const NO_VALUE: &str = "-";

/// The row of a device.
pub(crate) fn cells(row: &Row, now: Instant) -> [String; COLUMNS.len()] {
    let none = || NO_VALUE.to_string();
    let rate = |value: fn(&Rates) -> f64, show: fn(f64) -> String| {
        row.rates.as_ref().map_or_else(none, |rates| show(value(rates)))
    };
    let time = |value: fn(&LatencyStatus) -> Option<f64>| {
        row.rates.as_ref().and_then(|rates| value(&rates.all)).map_or_else(none, span)
    };
    let status = row.status();
    let requests = status.map(|status| &status.in_flight);
    let oldest = requests.and_then(|requests| requests.first());
    [
        row.device.to_string(),
        state(row, now).0.to_string(),
        rate(Rates::requests, |value| format!("{value:.0}")),
        rate(|rates| rates.read_bytes, brief),
        rate(|rates| rates.written_bytes, brief),
        time(|all| all.median_ms),
        time(|all| all.p99_ms),
        time(|all| all.p999_ms),
        time(|all| all.max_ms),
        requests.map_or_else(none, |requests| requests.len().to_string()),
        oldest.map_or_else(none, |oldest| age(oldest.age_ms)),
        status.map_or_else(none, |status| status.backend.restarts.to_string()),
        row.name.as_deref().map_or_else(none, |name| printable(name, &[])),
    ]
}

/// What the device is doing, in a word.
pub(crate) fn state(row: &Row, now: Instant) -> (&'static str, CellStyle) {
    if row.silent(now).is_some() {
        return ("no answer", CellStyle::Bad);
    }
    match &row.found {
        None => ("", CellStyle::Odd),
        Some(Listed::Attached(status)) => backend(status),
        Some(Listed::Unreachable { forbidden: false, .. }) => ("no answer", CellStyle::Bad),
        Some(listed) => listed.state(),
    }
}

fn backend(status: &Status) -> (&'static str, CellStyle) {
    let backend = &status.backend;
    let style = state_style(backend.state);
    match (backend.state, backend.tracer_pid) {
        (BackendState::Stopped, Some(_)) => ("debugger", style),
        (state, _) => (state_name(state), style),
    }
}

/// A remark on a device that has no column; may be empty.
pub(crate) fn remark(row: &Row, now: Instant) -> String {
    let name = row.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
    let device = format!("{}{}", row.device, printable(&name, &[]));
    if let Some(silent) = row.silent(now) {
        let silent = age(silent.as_millis() as u64);
        return format!("{device}: its holder has not answered for {silent}: nbd-ctl list");
    }
    let text = match &row.found {
        None => String::new(),
        Some(Listed::Attached(status)) => attached(status),
        Some(Listed::Orphaned(orphan)) => format!(
            "its holder (pid {}) has died; I/O goes on: nbd-ctl adopt {}",
            orphan.holder_pid, row.device
        ),
        Some(Listed::Ending { .. }) => "its holder is ending".into(),
        Some(
            Listed::Abandoned { detail, .. }
            | Listed::Stale { detail, .. }
            | Listed::Unreachable { detail, .. },
        ) => {
            return printable(detail, &[]);
        }
    };
    format!("{device}: {text}")
}

fn attached(status: &Status) -> String {
    let backend = &status.backend;
    let mut parts = Vec::new();
    parts.extend(status.under_way.clone());
    let pid = backend.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    match (backend.state, backend.tracer_pid) {
        (BackendState::Stopped, Some(tracer)) => {
            let name = fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
            let by = [name.trim(), &format!("(pid {tracer})")].join(" ");
            parts.push(format!("its backend{pid} is stopped by {}", by.trim()));
        }
        (BackendState::Stopped, None) => {
            let way_out = backend.pid.map(|pid| format!(": kill -CONT {pid}")).unwrap_or_default();
            parts.push(format!("its backend{pid} is stopped{way_out}"));
        }
        (BackendState::Running, _) => {}
        (state, _) => parts.push(state_name(state).into()),
    }
    if !backend.detail.is_empty() {
        parts.push(backend.detail.clone());
    }
    if parts.is_empty() {
        parts.push(backend.description.clone());
    }
    printable(&parts.join("; "), &[])
}

/// A number of bytes in at most five characters: `0`, `512`, `1.5M`, `120G`.
pub(crate) fn brief(bytes: f64) -> String {
    let (mut value, mut unit) = (bytes, 0);
    // 1023.5 would be shown as 1024.
    while value >= 1023.5 && unit < 6 {
        value /= 1024.0;
        unit += 1;
    }
    let unit = ["", "K", "M", "G", "T", "P", "E"][unit];
    if value < 9.95 && !unit.is_empty() {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes_are_brief() {
        for (bytes, text) in [
            (0.0, "0"),
            (512.4, "512"),
            (1023.6, "1.0K"),
            (1536.0, "1.5K"),
            (10.2 * 1048576.0, "10M"),
            (1023.9 * 1048576.0, "1.0G"),
        ] {
            assert_eq!(brief(bytes), text);
        }
    }

    #[test]
    fn all_columns_of_a_terminal_fit_into_it() {
        for width in 50..200 {
            let shown = COLUMNS.iter().filter(|column| column.least <= width);
            let sum: usize = shown.map(|column| column.width + 1).sum();
            assert!(sum - 1 <= width, "{sum} of {width}");
        }
    }
}
