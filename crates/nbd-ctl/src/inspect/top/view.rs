//! The model on a terminal.

mod details;
mod heat;
mod help;
mod list;

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::inspect::top::model::Model;
use crate::style::CellStyle;
use crate::table::age;

/// The smallest terminal on which anything can be made out.
const MIN_TERMINAL_SIZE: (u16, u16) = (50, 10);

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) colour: bool,
    pub(crate) unicode: bool,
}

impl Look {
    fn colour(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn cell_style(self, style: CellStyle) -> Style {
        match style {
            CellStyle::Good => self.colour(Color::Green),
            CellStyle::Odd => self.colour(Color::Yellow),
            CellStyle::Bad => self.colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model, look: Look, now: Instant) {
    let area = frame.area();
    if area.width < MIN_TERMINAL_SIZE.0 || area.height < MIN_TERMINAL_SIZE.1 {
        too_small(frame);
    } else if model.help {
        lines(frame, area, help::lines());
    } else if let Some(row) = model.selected().filter(|_| model.details) {
        lines(frame, area, details::lines(row, look, area, now));
        footer(frame, "Esc back  up/down other device  p pause  q quit  ? help");
    } else {
        list::draw(frame, model, look, now);
        footer(
            frame,
            "q quit  up/down select  Enter details  s sort  p pause  +/- interval  ? help",
        );
    }
    if !look.unicode {
        to_ascii(frame);
    }
}

fn too_small(frame: &mut Frame<'_>) {
    let Rect { width, height, .. } = frame.area();
    let (wide, high) = MIN_TERMINAL_SIZE;
    let words = [
        format!("{width}x{height} is too small:"),
        format!("make it {wide}x{high},"),
        "or q, and nbd-ctl top --once".into(),
    ];
    lines(frame, frame.area(), words.map(Line::from).into());
}

/// Writes lines from the top of an area, as many as it has room for.
fn lines(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'_>>) {
    for (line, y) in lines.into_iter().zip(area.top()..area.bottom()) {
        frame.buffer_mut().set_line(area.x, y, &line, area.width);
    }
}

fn footer(frame: &mut Frame<'_>, keys: &str) {
    let area = frame.area();
    let last = Rect { y: area.bottom() - 1, height: 1, ..area };
    let text = format!("{keys:<width$}", width = area.width as usize);
    lines(frame, last, vec![Line::styled(text, REVERSED)]);
}

/// What the whole screen is about.
fn title(model: &Model) -> Line<'static> {
    let devices = match model.rows().len() {
        1 => "1 device".to_string(),
        count => format!("{count} devices"),
    };
    let every = match model.interval().as_millis() as u64 {
        short @ 0..1000 => format!("{short} ms"),
        long => age(long),
    };
    let text = format!("  {devices}, every {every}, by {}", model.sort.name());
    let mut spans = vec![Span::styled("nbd-ctl top", BOLD), Span::raw(text)];
    if model.paused() {
        spans.push(Span::styled("  PAUSED", BOLD));
    }
    Line::from(spans)
}

/// Others would be shown as question marks, or garbled.
fn to_ascii(frame: &mut Frame<'_>) {
    for cell in &mut frame.buffer_mut().content {
        if let Some(symbol) = heat::ascii(cell.symbol()) {
            cell.set_symbol(symbol);
        }
    }
}

#[cfg(test)]
mod tests;
