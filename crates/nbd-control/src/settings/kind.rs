//! What the value of a setting means, and how people write it.

/// What a value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A probability, in billionths.
    Share,
    /// A time, in nanoseconds.
    Time,
    /// A number of bytes.
    Bytes,
    /// A number of anything else.
    Number,
    /// 0 or 1.
    Switch,
    /// An error of the NBD protocol, as its errno.
    Error,
}

const KINDS: [Kind; 6] =
    [Kind::Share, Kind::Time, Kind::Bytes, Kind::Number, Kind::Switch, Kind::Error];

/// A share of 1.
const WHOLE: f64 = 1e9;
const TIMES: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000), ("ns", 1)];
const SIZES: [(&str, u64); 5] =
    [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)];
/// The errors that the protocol has for a failed request, and their numbers there.
const ERRORS: [(&str, u64); 5] =
    [("EIO", 5), ("ENOSPC", 28), ("EPERM", 1), ("ENOMEM", 12), ("EINVAL", 22)];

impl Kind {
    /// Its number in a table.
    #[must_use]
    pub fn code(self) -> u64 {
        self as u64 + 1
    }

    /// The kind that has a number.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.code() == code)
    }

    /// What a value may be, for messages.
    #[must_use]
    pub fn expected(self) -> &'static str {
        match self {
            Self::Share => "a share from 0 to 1, like 0.01 or 1%",
            Self::Time => "a time, like 10ms, 250us, 1.5s or 0",
            Self::Bytes => "a number of bytes, like 4096, 512K, 10M or 0",
            Self::Number => "a whole number",
            Self::Switch => "on or off",
            Self::Error => "an error: EIO, ENOSPC, EPERM, ENOMEM or EINVAL",
        }
    }

    /// Reads a value.
    #[must_use]
    pub fn parse(self, text: &str) -> Option<u64> {
        match self {
            Self::Share => parse_share(text),
            Self::Time => parse_time(text),
            Self::Bytes => parse_bytes(text),
            Self::Number => text.parse().ok(),
            Self::Switch => match text {
                "on" | "1" => Some(1),
                "off" | "0" => Some(0),
                _ => None,
            },
            Self::Error => {
                ERRORS.into_iter().find(|(name, _)| *name == text).map(|(_, number)| number)
            }
        }
    }

    /// Writes a value, so that [`parse`](Self::parse) reads it back.
    #[must_use]
    pub fn format(self, value: u64) -> String {
        match self {
            Self::Share => format!("{}", value as f64 / WHOLE),
            Self::Time => in_largest(value, &TIMES),
            Self::Bytes => in_largest(value, &SIZES),
            Self::Number => value.to_string(),
            Self::Switch => if value == 0 { "off" } else { "on" }.into(),
            Self::Error => {
                let known = ERRORS.into_iter().find(|(_, number)| *number == value);
                known.map_or_else(|| value.to_string(), |(name, _)| name.into())
            }
        }
    }
}

/// Only digits and a point: what else a float may be written as is no number to people.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (plain && text.len() <= 20).then(|| text.parse().ok()).flatten()
}

fn parse_share(text: &str) -> Option<u64> {
    let share = match text.strip_suffix('%') {
        Some(percent) => decimal(percent)? / 100.0,
        None => decimal(text)?,
    };
    (share <= 1.0).then(|| (share * WHOLE).round() as u64)
}

fn parse_time(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number = decimal(digits)?;
    let unit = &text[digits.len()..];
    if unit.is_empty() {
        return (number == 0.0).then_some(0);
    }
    let (_, factor) = TIMES.into_iter().find(|(name, _)| *name == unit)?;
    let time = number * factor as f64;
    // A delay of more than a day is a mistake.
    (time <= 86_400.0 * 1e9).then(|| time.round() as u64)
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let unit = unit.strip_suffix("iB").unwrap_or(unit);
    let (_, factor) = SIZES.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn in_largest(value: u64, units: &[(&str, u64)]) -> String {
    if value == 0 {
        return "0".into();
    }
    let (unit, factor) =
        units.iter().find(|(_, factor)| value.is_multiple_of(*factor)).unwrap_or(&("", 1));
    format!("{}{unit}", value / factor)
}
