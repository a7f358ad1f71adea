//! A heat line in characters and colours.

use ratatui::style::Color;
use ratatui::text::Span;

use crate::inspect::top::history::{Cell, History};
use crate::inspect::top::view::look::Look;

/// The latest intervals, the newest at the right end of `width`.
pub(crate) fn spans(history: &History, width: usize, look: Look) -> Vec<Span<'static>> {
    let cells: Vec<_> = history.latest(width).collect();
    let mut spans = vec![Span::raw(" ".repeat(width - cells.len()))];
    spans.extend(
        cells
            .into_iter()
            .map(|cell| Span::styled(cell.symbol().to_string(), look.colour(colour(cell)))),
    );
    spans
}

const fn colour(cell: Cell) -> Color {
    match cell {
        Cell::Idle => Color::DarkGray,
        Cell::Took(0..=2) => Color::Green,
        Cell::Took(3..=4) => Color::Yellow,
        Cell::Took(_) => Color::Red,
        Cell::Waits | Cell::Silent => Color::Magenta,
    }
}

/// What stands for a character where there is only ASCII.
pub(crate) fn ascii(symbol: &str) -> Option<&'static str> {
    Some(match symbol {
        "▁" => "_",
        "▂" => ".",
        "▃" => ":",
        "▄" => "-",
        "▅" => "=",
        "▆" => "+",
        "▇" => "*",
        "█" => "#",
        "·" => " ",
        "µ" => "u",
        "…" => "~",
        symbol if !symbol.is_ascii() => "?",
        _ => return None,
    })
}
