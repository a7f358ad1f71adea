//! All about one device.

use std::time::Instant;

use nbd_control::latency::LatencyStatus;
use nbd_control::status::{RequestStatus, Status};
use nbd_control::text::printable;
use nbd_control::trace::Executed;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use crate::inspect::render;
use crate::inspect::top::cells::{brief, remark, state};
use crate::inspect::top::model::Row;
use crate::inspect::top::rates::Rates;
use crate::inspect::top::view::heat;
use crate::inspect::top::view::look::{BOLD, Look};
use crate::text::table::{Align, age, columns, size, span};

pub(crate) fn lines(row: &Row, look: Look, area: Rect, now: Instant) -> Vec<Line<'static>> {
    let (word, style) = state(row, now);
    let name = row.name.as_deref().map(|name| format!(" ({})", printable(name, &[])));
    let name = name.unwrap_or_default();
    let mut head = vec![Span::styled(format!("{}{name}  ", row.device), BOLD)];
    head.push(Span::styled(word, look.cell_style(style)));
    let mut lines = vec![];
    if let Some(status) = row.status() {
        let lanes =
            if status.lanes == 1 { "1 lane".into() } else { format!("{} lanes", status.lanes) };
        let description = printable(&status.backend.description, &[]);
        let size = size(status.export.size);
        head.push(Span::raw(format!("  {description}, {size}, {}, {lanes}", status.kernel_api)));
        lines.push(Line::from(format!("backend: {}", backend(status))));
    }
    lines.insert(0, Line::from(head));
    lines.push(Line::from(remark(row, now)));
    lines.extend(rates(row.rates.as_ref()));
    lines.push(Line::from(heat::spans(&row.history, area.width as usize, look)));
    let Some(status) = row.status() else {
        return lines;
    };
    // The rest is for two tables with a heading and a header each, and the footer is below them.
    let rest = (area.height as usize).saturating_sub(lines.len() + 5);
    let waiting = status.in_flight.len().min(rest.div_ceil(2));
    lines.extend(in_flight(&status.in_flight, waiting));
    lines.extend(slowest(row.slow.slowest(), rest - waiting));
    lines
}

fn backend(status: &Status) -> String {
    let restarts = match status.backend.restarts {
        1 => "1 restart".into(),
        count => format!("{count} restarts"),
    };
    let last = status.last_recovery.as_ref().map(render::recovery);
    let last = last.map(|text| format!("; last loss: {text}")).unwrap_or_default();
    printable(&format!("{}, {restarts}{last}", render::backend(status)), &[])
}

fn rates(rates: Option<&Rates>) -> Vec<Line<'static>> {
    use Align::{Left, Right};
    let header = [
        ("", Left),
        ("/s", Right),
        ("BYTES/s", Right),
        ("p50", Right),
        ("p99", Right),
        ("p99.9", Right),
        ("MAX", Right),
    ];
    let row = |name: &str, value: fn(&Rates) -> f64, bytes: Option<fn(&Rates) -> f64>| {
        let none = || "-".to_string();
        let kind = rates.and_then(|rates| rates.kinds.iter().find(|kind| kind.command == name));
        let time =
            |value: fn(&LatencyStatus) -> Option<f64>| kind.and_then(value).map_or_else(none, span);
        [
            name.to_string(),
            rates.map_or_else(none, |rates| format!("{:.0}", value(rates))),
            rates.zip(bytes).map_or_else(none, |(rates, bytes)| brief(bytes(rates))),
            time(|kind| kind.median_ms),
            time(|kind| kind.p99_ms),
            time(|kind| kind.p999_ms),
            time(|kind| kind.max_ms),
        ]
        .map(|cell| format!("{cell:>7}"))
    };
    let rows = [
        row("read", |rates| rates.reads, Some(|rates| rates.read_bytes)),
        row("write", |rates| rates.writes, Some(|rates| rates.written_bytes)),
        row("flush", |rates| rates.flushes, None),
        row("other", |rates| rates.others, None),
    ];
    table(columns(header, &rows))
}

fn in_flight(requests: &[RequestStatus], most: usize) -> Vec<Line<'static>> {
    use Align::{Left, Right};
    let header = [
        ("AGE", Right),
        ("COMMAND", Left),
        ("OFFSET+LENGTH", Left),
        ("STAGE", Left),
        ("ATTEMPTS", Right),
        ("LANE", Right),
    ];
    let rows: Vec<_> = requests[..most]
        .iter()
        .map(|request| {
            [
                age(request.age_ms),
                printable(&request.command, &[]),
                format!("{}+{}", request.offset, request.length),
                render::stage_name(request.stage).to_string(),
                request.attempts.to_string(),
                request.lane.to_string(),
            ]
        })
        .collect();
    let mut heading = format!("in flight: {}", requests.len());
    if requests.len() > most {
        heading.push_str(&format!(", the oldest {most}:"));
    }
    headed(heading, columns(header, &rows), most)
}

fn slowest(executed: &[Executed], most: usize) -> Vec<Line<'static>> {
    use Align::{Left, Right};
    let header = [
        ("ENDED", Right),
        ("TOOK", Right),
        ("COMMAND", Left),
        ("OFFSET+LENGTH", Left),
        ("ERROR", Right),
        ("BACKEND", Right),
    ];
    let most = executed.len().min(most);
    let rows: Vec<_> = executed[..most]
        .iter()
        .map(|it| {
            [
                format!("{:.3}", it.finished_at as f64 / 1e9),
                span(it.finished_at.saturating_sub(it.received_at) as f64 / 1e6),
                printable(&it.command, &[]),
                format!("{}+{}", it.offset, it.length),
                it.error.to_string(),
                it.backend.to_string(),
            ]
        })
        .collect();
    headed("slowest of the last minute".into(), columns(header, &rows), most)
}

fn headed(heading: String, lines: Vec<String>, rows: usize) -> Vec<Line<'static>> {
    let mut all = vec![Line::styled(heading, BOLD)];
    if rows > 0 {
        all.extend(table(lines));
    }
    all
}

fn table(lines: Vec<String>) -> Vec<Line<'static>> {
    lines.into_iter().map(|line| Line::from(format!("  {line}"))).collect()
}
