//! Values as words, and words in columns.

/// Where a column's values stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Lines of aligned columns, two spaces apart, the first line being the header.
pub(crate) fn columns<const N: usize>(
    header: [(&str, Align); N],
    rows: &[[String; N]],
) -> Vec<String> {
    painted(&header, rows, |_, _, cell| cell.to_owned())
}

/// The same with cells that `paint` may colour, by the numbers of row and column. It must leave their
/// visible width as it is.
pub(crate) fn painted(
    header: &[(&str, Align)],
    rows: &[impl AsRef<[String]>],
    paint: impl Fn(usize, usize, &str) -> String,
) -> Vec<String> {
    let mut widths: Vec<_> = header.iter().map(|(name, _)| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row.as_ref()) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[&str], paint: &dyn Fn(usize, &str) -> String| {
        let mut line = String::new();
        for (column, ((cell, &width), (_, align))) in
            cells.iter().zip(&widths).zip(header).enumerate()
        {
            let blanks = " ".repeat(width - cell.chars().count());
            let gap = if column > 0 { "  " } else { "" };
            match align {
                Align::Left => line.push_str(&format!("{gap}{}{blanks}", paint(column, cell))),
                Align::Right => line.push_str(&format!("{gap}{blanks}{}", paint(column, cell))),
            }
        }
        line.trim_end().to_string()
    };
    let names: Vec<_> = header.iter().map(|(name, _)| *name).collect();
    let mut lines = vec![line(&names, &|_, name| name.to_owned())];
    lines.extend(rows.iter().enumerate().map(|(number, row)| {
        let cells: Vec<_> = row.as_ref().iter().map(String::as_str).collect();
        line(&cells, &|column, cell| paint(number, column, cell))
    }));
    lines
}

/// A number of bytes for people: `512 B`, `1.0 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time for people: `7 ms`, `12.4 s`, `2m05s`, `3h07m`, `4d01h`.
pub(crate) fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// How long a request took: `1.3 µs`, `82 µs`, `1.3 ms`, `34 ms`, and longer ones as an [`age`].
pub(crate) fn span(milliseconds: f64) -> String {
    match milliseconds {
        ..0.01 => format!("{:.1} µs", milliseconds * 1000.0),
        ..1.0 => format!("{:.0} µs", milliseconds * 1000.0),
        ..10.0 => format!("{milliseconds:.1} ms"),
        ..1000.0 => format!("{milliseconds:.0} ms"),
        _ => age(milliseconds as u64),
    }
}

/// A command line that a shell would take apart again.
pub(crate) fn command_line(words: &[String]) -> String {
    let harmless = |c: char| c.is_alphanumeric() || "_-+=.,:/@%".contains(c);
    let quoted: Vec<String> = words
        .iter()
        .map(|word| {
            if !word.is_empty() && word.chars().all(harmless) {
                word.clone()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        })
        .collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["nbd0".to_string(), "1".to_string()], ["n".to_string(), "1000".to_string()]];
        assert_eq!(
            columns([("NAME", Align::Left), ("N", Align::Right)], &rows),
            ["NAME     N", "nbd0     1", "n     1000"]
        );
        let rows = [["a".to_string(), "long".to_string()]];
        assert_eq!(columns([("A", Align::Right), ("B", Align::Left)], &rows), ["A  B", "a  long"]);
    }

    #[test]
    fn sizes_have_one_decimal_and_the_right_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (10 << 40, "10.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn ages_are_short() {
        for (milliseconds, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1.0 s"),
            (12_450, "12.4 s"),
            (59_999, "59.9 s"),
            (125_000, "2m05s"),
            (11_220_000, "3h07m"),
            (349_200_000, "4d01h"),
        ] {
            assert_eq!(age(milliseconds), text, "{milliseconds}");
        }
    }

    #[test]
    fn spans_have_two_digits_or_three() {
        for (milliseconds, text) in [
            (0.00128, "1.3 µs"),
            (0.0819, "82 µs"),
            (1.28, "1.3 ms"),
            (33.6, "34 ms"),
            (999.0, "999 ms"),
            (51_539.6, "51.5 s"),
        ] {
            assert_eq!(span(milliseconds), text);
        }
    }

    #[test]
    fn words_that_a_shell_would_change_are_quoted() {
        let words = ["a b", "it's", "", "x=1"].map(String::from);
        assert_eq!(command_line(&words), r"'a b' 'it'\''s' '' x=1");
    }
}
