//! All devices, their latencies over time, and a word about the selected one.

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use crate::device::Device;
use crate::inspect::top::cells::{COLUMNS, Column, cells, remark, state};
use crate::inspect::top::history::legend;
use crate::inspect::top::model::{Model, Row};
use crate::inspect::top::view::heat;
use crate::inspect::top::view::look::{BOLD, Look, REVERSED, lines, title};
use crate::text::table::Align;

/// Title, header, remark and footer.
const FIXED_LINES: usize = 4;
/// What is written in front of a heat line.
const NAME_WIDTH: usize = 8;

pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model, look: Look, now: Instant) {
    let area = frame.area();
    let rows = model.rows();
    if rows.is_empty() {
        return lines(frame, area, vec![title(model), Line::default(), nothing(&model.wanted)]);
    }
    let selected = model.selected().map(|row| row.device);
    let space = area.height as usize - FIXED_LINES;
    // An empty line and a heading are in front of the heat lines: of all devices or of one.
    let heats = if 2 * rows.len() + 2 <= space { rows.len() } else { 1 };
    let shown = rows.len().min(space - heats - 2);
    let place = rows.iter().position(|row| Some(row.device) == selected).unwrap_or(0);
    let first = place.saturating_sub(shown - 1).min(rows.len() - shown);

    let mut text = vec![title(model), header(area)];
    for row in &rows[first..first + shown] {
        text.push(line(row, area, look, Some(row.device) == selected, now));
    }
    text.push(Line::default());
    text.push(Line::styled(format!("{:<NAME_WIDTH$}{}", "p99", legend()), BOLD));
    let all = rows.iter().filter(|row| heats > 1 || Some(row.device) == selected);
    text.extend(all.map(|row| heat_line(row, area, look)));
    lines(frame, area, text);

    let above_footer = Rect { y: area.bottom() - 2, height: 1, ..area };
    let remark = model.selected().map(|row| remark(row, now)).unwrap_or_default();
    lines(frame, above_footer, vec![Line::from(remark)]);
}

fn nothing(wanted: &[Device]) -> Line<'static> {
    if wanted.is_empty() {
        return Line::from("nothing is attached: nbd-ctl attach file:disk.img");
    }
    let names: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    Line::from(format!("not attached any more: {}", names.join(", ")))
}

fn columns(area: Rect) -> impl Iterator<Item = (usize, &'static Column)> {
    let width = area.width as usize;
    COLUMNS.iter().enumerate().filter(move |(_, column)| column.least <= width)
}

fn padded(text: &str, column: &Column) -> String {
    let width = column.width;
    match column.align {
        Align::Left => format!("{text:<width$} "),
        Align::Right => format!("{text:>width$} "),
    }
}

fn header(area: Rect) -> Line<'static> {
    let text: String = columns(area).map(|(_, column)| padded(column.name, column)).collect();
    Line::styled(text, BOLD)
}

fn line(row: &Row, area: Rect, look: Look, selected: bool, now: Instant) -> Line<'static> {
    let cells = cells(row, now);
    let spans = columns(area).map(|(number, column)| {
        let style = match column.name {
            "STATE" if !selected => look.cell_style(state(row, now).1),
            _ => Style::new(),
        };
        Span::styled(padded(&cells[number], column), style)
    });
    let mut line = Line::from(spans.collect::<Vec<_>>());
    if selected {
        // To the edge, as far as the terminal is wider.
        let rest = (area.width as usize).saturating_sub(line.width());
        line.push_span(Span::raw(" ".repeat(rest)));
        line = line.patch_style(REVERSED);
    }
    line
}

fn heat_line(row: &Row, area: Rect, look: Look) -> Line<'static> {
    let mut spans = vec![Span::raw(format!("{:<NAME_WIDTH$}", row.device.to_string()))];
    spans.extend(heat::spans(&row.history, area.width as usize - NAME_WIDTH, look));
    Line::from(spans)
}
