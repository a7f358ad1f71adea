//! Text that other processes have had a say in, for terminals and logs.

/// The text without what would make a terminal do something: control characters are written as in a Rust
/// literal, but those in `kept`.
#[must_use]
pub fn printable(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && !kept.contains(&c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// Most characters of a text that [`one_line`] leaves.
const MAX_CHARS: usize = 1024;

/// The text as one line of bounded length.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line: String = text.chars().take(MAX_CHARS).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    printable(&line, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_an_end() {
        assert_eq!(one_line("as it is"), "as it is");
        assert_eq!(one_line("two\nlines"), r"two\nlines");
        assert_eq!(one_line(&"ü".repeat(2000)), "ü".repeat(MAX_CHARS) + "…");
    }

    #[test]
    fn no_control_character_is_left_but_those_that_are_wanted() {
        assert_eq!(printable("a\x1b[2Jb\nc", &[]), r"a\u{1b}[2Jb\nc");
        assert_eq!(printable("a\nb\r", &['\n']), "a\nb\\r");
        assert_eq!(printable("\u{9b}31m\tü\u{7f}", &['\t']), "\\u{9b}31m\tü\\u{7f}");
    }
}
