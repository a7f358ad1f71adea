//! What was found on a machine.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::text::style::CellStyle;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Level {
    Fine,
    /// Something to know.
    Warning,
    /// Something that will not work.
    Trouble,
    /// It was, and has been put right.
    Fixed,
}

impl Level {
    pub(super) fn style(self) -> CellStyle {
        match self {
            Self::Fine | Self::Fixed => CellStyle::Good,
            Self::Warning => CellStyle::Odd,
            Self::Trouble => CellStyle::Bad,
        }
    }
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) level: Level,
    pub(super) text: String,
}

/// All that was found.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn add(&mut self, check: &'static str, level: Level, text: impl Into<String>) {
        self.0.push(Finding { check, level, text: text.into() });
    }
}

pub(super) fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
