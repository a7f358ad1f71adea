//! What keys and characters mean.

use ratatui::text::Line;

use crate::inspect::top::history::legend;
use crate::inspect::top::keys::KEYS;
use crate::inspect::top::view::look::BOLD;

pub(crate) fn lines() -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled("Keys", BOLD)];
    lines.extend(KEYS.iter().map(|(_, name, _, text)| Line::from(format!("  {name:<9} {text}"))));
    lines.push(Line::default());
    lines.push(Line::styled(
        "Latency: from when a backend takes a request to the end of its execution",
        BOLD,
    ));
    lines.push(Line::from(format!("  {}", legend())));
    lines.push(Line::from(
        "  One character is one interval, its height the time in which 99 % of requests (p99) ended;",
    ));
    lines.push(Line::from("  ? is a holder that did not answer. OLDEST waits for an answer."));
    lines.push(Line::default());
    lines.push(Line::from("Any key goes on."));
    lines
}
