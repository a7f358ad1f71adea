//! The values of parameters, as nbdkit-plugin(3) defines how they are written.

/// What `nbdkit_parse_size` accepts: a decimal number, and one letter for a unit.
pub(super) fn size(text: &str) -> Result<i64, String> {
    let refuse = |why: &str| Err(format!("could not parse size string ({text}): {why}"));
    let text = text.trim_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return refuse(if text.starts_with('-') { "it is negative" } else { "it is no number" });
    }
    let factor: i64 = match unit {
        "" | "b" | "B" => 1,
        "s" | "S" => 512,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return refuse("after the number can be one of the letters b, s, k, m, g, t, p and e"),
    };
    match digits.parse::<i64>().ok().and_then(|number| number.checked_mul(factor)) {
        Some(size) => Ok(size),
        None => refuse("it is too large"),
    }
}

/// What `nbdkit_parse_bool` accepts.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
        _ => Err(format!("could not decipher boolean ({text})")),
    }
}

/// A whole number: decimal, hexadecimal after 0x, or octal after 0; with a sign.
pub(super) fn integer<T: TryFrom<i128>>(what: &str, text: &str) -> Result<T, String> {
    let refuse = |why: &str| format!("{what}: could not parse number: \"{text}\": {why}");
    let trimmed = text.trim_start();
    let (is_negative, digits) = match trimmed.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hexadecimal) => (hexadecimal, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(refuse("it is no number"));
    }
    // What has so many digits fits no type that there is.
    let number = i128::from_str_radix(digits, radix).map_err(|_| refuse("it is out of range"))?;
    let number = if is_negative { -number } else { number };
    T::try_from(number).map_err(|_| refuse("it is out of range"))
}

/// A probability: `0.5`, `50%`, `1:2`, `1/2`. Never negative; may be above 1.
pub(super) fn probability(what: &str, text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let parsed = match (text.strip_suffix('%'), text.split_once([':', '/'])) {
        (Some(percent), _) => number(percent).map(|percent| percent / 100.0),
        (None, Some((part, whole))) => number(part).zip(number(whole)).map(|(part, whole)| {
            // As there: nothing of nothing is nothing.
            if part == 0.0 { 0.0 } else { part / whole }
        }),
        (None, None) => number(text),
    };
    parsed
        .filter(|value| value.is_finite() && *value >= 0.0)
        .ok_or_else(|| format!("{what}: could not parse probability: \"{text}\""))
}

/// A time: seconds, or a number with a unit; as seconds and nanoseconds.
pub(super) fn delay(what: &str, text: &str) -> Result<(u32, u32), String> {
    let refuse = || format!("{what}: could not parse delay: \"{text}\"");
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim() {
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1e9,
        "ms" | "millisecond" | "milliseconds" => 1e6,
        "us" | "μs" | "µs" | "microsecond" | "microseconds" => 1e3,
        "ns" | "nanosecond" | "nanoseconds" => 1.0,
        _ => return Err(refuse()),
    };
    let nanoseconds = number.parse::<f64>().map_err(|_| refuse())? * factor;
    if !nanoseconds.is_finite() || nanoseconds >= f64::from(u32::MAX) * 1e9 {
        return Err(refuse());
    }
    // In range: checked above.
    let nanoseconds = nanoseconds.round() as u64;
    Ok(((nanoseconds / 1_000_000_000) as u32, (nanoseconds % 1_000_000_000) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_unit_and_are_not_negative() {
        let good = [("0", 0), ("1", 1), ("1b", 1), ("2s", 1024), ("1k", 1024), ("3M", 3 << 20)];
        for (text, size) in good.into_iter().chain([("7E", 7 << 60), (" 1", 1), ("+5", 5)]) {
            assert_eq!(super::size(text), Ok(size), "{text}");
        }
        for text in ["", "-1", "k", "1kk", "1 k", "8E", "9223372036854775808", "1.5M", "0x10"] {
            assert!(super::size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn booleans_are_words() {
        for (text, value) in
            [("1", true), ("YES", true), ("on", true), ("f", false), ("Off", false)]
        {
            assert_eq!(boolean(text), Ok(value));
        }
        assert!(boolean("2").is_err() && boolean("").is_err());
    }

    #[test]
    fn integers_have_a_base_and_a_range() {
        assert_eq!(integer::<i8>("x", "-128"), Ok(-128));
        assert_eq!(integer::<u8>("x", "0xff"), Ok(255));
        assert_eq!(integer::<u16>("x", "0777"), Ok(0o777));
        assert_eq!(integer::<u64>("x", "18446744073709551615"), Ok(u64::MAX));
        assert_eq!(integer::<i64>("x", "-9223372036854775808"), Ok(i64::MIN));
        for text in [
            "",
            "-",
            "256",
            "-1",
            "1x",
            "0x",
            "08",
            "--1",
            "99999999999999999999999999999999999999999999",
        ] {
            let error = integer::<u8>("what", text).unwrap_err();
            assert!(error.starts_with("what: ") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn probabilities_and_delays_have_several_forms() {
        for text in ["0.5", "50%", "1:2", "1/2"] {
            assert_eq!(probability("x", text), Ok(0.5));
        }
        assert_eq!(probability("x", "0:0"), Ok(0.0));
        for text in ["", "-1", "nan", "1:0", "%"] {
            assert!(probability("x", text).is_err(), "{text}");
        }
        assert_eq!(delay("x", "1.5"), Ok((1, 500_000_000)));
        assert_eq!(delay("x", "20ms"), Ok((0, 20_000_000)));
        assert_eq!(delay("x", "7 ns"), Ok((0, 7)));
        for text in ["", "ms", "1h", "-1", "1e99s", "4294967296"] {
            assert!(delay("x", text).is_err(), "{text}");
        }
    }
}
