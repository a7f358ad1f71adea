//! Sizes as people write them: `4096`, `512K`, `10M`, `1G`.

use std::fmt;

use thiserror::Error;

/// Most bytes that a file, and so a device, can have.
const MAX_BYTES: u64 = i64::MAX as u64;
const UNITS: [(char, u32); 6] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50), ('E', 60)];

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// There is none.
    #[error("the size is missing: write a number like 4096, 512K, 10M or 1G")]
    Missing,
    /// Something else.
    #[error(
        "`{0}` is not a size: write a whole number of bytes, or one with K, M, G or T (powers of \
         1024), like 10M"
    )]
    Malformed(String),
    /// Too many bytes.
    #[error("`{0}` is more than a device can have (8E)")]
    TooLarge(String),
    /// No bytes.
    #[error("a size of 0 makes no device")]
    Zero,
}

/// Reads a size. `10M`, `10m`, `10MiB` are the same; `10MB` is refused, because it is less.
///
/// # Errors
///
/// The text is no size, or one that no device can have: 0, or more than `i64::MAX` bytes.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    if text.is_empty() {
        return Err(SizeError::Missing);
    }
    let malformed = || SizeError::Malformed(text.into());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(malformed());
    }
    let shift = shift_of(unit).ok_or_else(malformed)?;
    // Only digits are left, so all that can be wrong is that there are too many.
    let size = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|size| *size <= MAX_BYTES)
        .ok_or_else(|| SizeError::TooLarge(text.into()))?;
    if size == 0 {
        return Err(SizeError::Zero);
    }
    Ok(size)
}

fn shift_of(unit: &str) -> Option<u32> {
    let mut letters = unit.chars();
    let Some(letter) = letters.next() else {
        return Some(0);
    };
    let (_, shift) = UNITS.into_iter().find(|(unit, _)| unit.eq_ignore_ascii_case(&letter))?;
    matches!(letters.as_str(), "" | "iB").then_some(shift)
}

/// A size in the largest unit that leaves a whole number; [`parse`] reads it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, shift): &&(char, u32)| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().rev().find(whole) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, size) in [
            ("1", 1),
            ("4096", 4096),
            ("512K", 512 << 10),
            ("10M", 10 << 20),
            ("10m", 10 << 20),
            ("10MiB", 10 << 20),
            ("1G", 1 << 30),
            ("2T", 2 << 40),
            ("3P", 3 << 50),
            ("7E", 7 << 60),
            ("9223372036854775807", MAX_BYTES),
            ("007K", 7 << 10),
        ] {
            assert_eq!(parse(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_named() {
        for text in ["M", "-1", "+1", "1.5G", "10MB", "10X", "1 G", "1GG", "0x10", "1iB"] {
            assert_eq!(parse(text), Err(SizeError::Malformed(text.into())), "{text}");
        }
        assert_eq!(parse(""), Err(SizeError::Missing));
    }

    #[test]
    fn too_much_and_nothing_are_told_apart() {
        for text in ["8E", "9223372036854775808", "18446744073709551616", "16777216T"] {
            assert_eq!(parse(text), Err(SizeError::TooLarge(text.into())), "{text}");
        }
        for text in ["0", "0G", "000"] {
            assert_eq!(parse(text), Err(SizeError::Zero), "{text}");
        }
    }

    #[test]
    fn a_written_size_is_read_back() {
        for size in [1, 512, 1024, 1536, 1 << 20, (1 << 30) + 512, MAX_BYTES] {
            assert_eq!(parse(&Size(size).to_string()), Ok(size));
        }
        assert_eq!(Size(10 << 20).to_string(), "10M");
    }
}
