//! Which events are wanted, as people write it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use tracing_subscriber::filter::{LevelFilter, Targets};

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// A level for everything, and others for some crates: `info`, `warn,nbd_client=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    level: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no level: write error, warn, info, debug, trace or off, and CRATE=LEVEL behind a comma \
     for what is in one crate, like info,nbd_client=debug"
)]
pub struct FilterError(String);

impl Default for Filter {
    /// What operators care about.
    fn default() -> Self {
        Self { level: LevelFilter::INFO, targets: Vec::new() }
    }
}

impl Filter {
    /// As many `-v` as were given, for want of anything else.
    #[must_use]
    pub fn verbose(count: u8) -> Option<Self> {
        let level = match count {
            0 => return None,
            1 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        Some(Self { level, targets: Vec::new() })
    }

    pub(crate) fn targets(&self) -> Targets {
        Targets::new().with_default(self.level).with_targets(self.targets.iter().cloned())
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |level: LevelFilter| {
            LEVELS.iter().find(|(_, known)| *known == level).map_or("off", |(name, _)| name)
        };
        f.write_str(name(self.level))?;
        self.targets.iter().try_for_each(|(target, level)| write!(f, ",{target}={}", name(*level)))
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for part in text.split(',').map(str::trim) {
            let (target, level) = match part.split_once('=') {
                Some((target, level)) => (Some(target), level),
                None => (None, part),
            };
            let known = LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(level));
            let level = known.ok_or_else(|| FilterError(part.into()))?.1;
            match target {
                None => filter.level = level,
                Some("") => return Err(FilterError(part.into())),
                // Crates are known here by their names in code.
                Some(target) => filter.targets.push((target.replace('-', "_"), level)),
            }
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_is_for_everything_and_a_crate_may_have_its_own() {
        let targets = "warn,nbd-client=debug".parse::<Filter>().unwrap().targets();
        for (target, level, is_wanted) in [
            ("nbd_serve", Level::WARN, true),
            ("nbd_serve", Level::INFO, false),
            ("nbd_client::connection", Level::DEBUG, true),
            ("nbd_client", Level::TRACE, false),
        ] {
            assert_eq!(targets.would_enable(target, &level), is_wanted, "{target} {level}");
        }
        assert_eq!("INFO".parse::<Filter>(), Ok(Filter::default()));
    }

    #[test]
    fn what_is_shown_says_the_same() {
        for text in ["info", "off", "warn,nbd_client=debug,nbd_serve=off"] {
            assert_eq!(text.parse::<Filter>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_misspelt_is_named() {
        for text in ["inof", "", "info,", "nbd_client", "=debug", "nbd_client=loud"] {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains("is no level: write error, warn, info"), "{text}: {error}");
        }
    }
}
