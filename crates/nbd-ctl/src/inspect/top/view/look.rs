//! What the terminal can show, and what all views show alike.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::inspect::top::model::Model;
use crate::text::style::CellStyle;
use crate::text::table::age;

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) colour: bool,
    pub(crate) unicode: bool,
}

impl Look {
    pub(super) fn colour(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    pub(super) fn cell_style(self, style: CellStyle) -> Style {
        match style {
            CellStyle::Good => self.colour(Color::Green),
            CellStyle::Odd => self.colour(Color::Yellow),
            CellStyle::Bad => self.colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}

pub(super) const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
pub(super) const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Writes lines from the top of an area, as many as it has room for.
pub(super) fn lines(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'_>>) {
    for (line, y) in lines.into_iter().zip(area.top()..area.bottom()) {
        frame.buffer_mut().set_line(area.x, y, &line, area.width);
    }
}

/// What the whole screen is about.
pub(super) fn title(model: &Model) -> Line<'static> {
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
