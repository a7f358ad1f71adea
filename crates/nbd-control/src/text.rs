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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_is_left_but_those_that_are_wanted() {
        assert_eq!(printable("a\x1b[2Jb\nc", &[]), r"a\u{1b}[2Jb\nc");
        assert_eq!(printable("a\nb\r", &['\n']), "a\nb\\r");
        assert_eq!(printable("\u{9b}31m\tü\u{7f}", &['\t']), "\\u{9b}31m\tü\\u{7f}");
    }
}
