//! The model on a terminal.

mod details;
mod heat;
mod help;
mod list;
pub(crate) mod look;

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;

use crate::inspect::top::model::Model;
use look::{Look, REVERSED, lines};

/// The smallest terminal on which anything can be made out.
const MIN_TERMINAL_SIZE: (u16, u16) = (50, 10);

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

fn footer(frame: &mut Frame<'_>, keys: &str) {
    let area = frame.area();
    let last = Rect { y: area.bottom() - 1, height: 1, ..area };
    let text = format!("{keys:<width$}", width = area.width as usize);
    lines(frame, last, vec![Line::styled(text, REVERSED)]);
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
