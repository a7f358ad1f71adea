//! How much attention something deserves, and the colours for it.

use std::env;
use std::io::{self, IsTerminal};

/// How much attention something deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellStyle {
    Good,
    Odd,
    Bad,
}

impl CellStyle {
    /// The text in its colour, by the sequences that terminals have in common.
    pub(crate) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Good => "32",
            Self::Odd => "33",
            Self::Bad => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Whether what is printed is shown on a terminal that has colours, to a user who wants them.
pub(crate) fn is_coloured() -> bool {
    let variable = |name| env::var_os(name).unwrap_or_default();
    let has_colours = !["", "dumb"].contains(&&*variable("TERM").to_string_lossy());
    variable("NO_COLOR").is_empty() && has_colours && io::stdout().is_terminal()
}
