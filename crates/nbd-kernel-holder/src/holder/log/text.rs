//! What a backend writes, as lines that can be trusted to be what they look like. No I/O.

use std::collections::VecDeque;
use std::time::Instant;

/// A longer line is cut off.
pub(crate) const MAX_LINE: usize = 4096;
/// So many lines of a program are kept to tell how it ended.
const MAX_TAIL: usize = 20;
/// How the holder's own lines begin.
const OURS: &str = "nbd-kernel-holder";
/// What is put before the line of a backend that begins like one of ours.
const NOT_OURS: &str = "backend: ";

/// Takes bytes apart into lines, across reads.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    rest: Vec<u8>,
    /// The rest has reached its limit: what follows up to the end of the line is left out.
    is_cut: bool,
}

impl Splitter {
    /// Hands each complete line on.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            let room = MAX_LINE - self.rest.len();
            self.is_cut |= text.len() > room;
            self.rest.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                self.end(&mut take);
            }
        }
    }

    /// Hands on what is left when there is no more to come.
    pub(crate) fn end(&mut self, take: &mut impl FnMut(String)) {
        let cut = if std::mem::take(&mut self.is_cut) { "…" } else { "" };
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            take(printable(&rest) + cut);
        }
    }
}

/// One line for a log: no control characters, and not one of ours.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches('\r');
    let mut shown = String::with_capacity(text.len());
    if text.trim_start().starts_with(OURS) {
        shown.push_str(NOT_OURS);
    }
    for c in text.chars() {
        match c.is_control() && c != '\t' {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// The last lines of a program, and when they came.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<(Instant, String)>);

impl Tail {
    pub(crate) fn push(&mut self, line: &str, now: Instant) {
        if self.0.len() == MAX_TAIL {
            self.0.pop_front();
        }
        self.0.push_back((now, line.to_owned()));
    }

    pub(crate) fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.iter().map(|(_, line)| &**line)
    }

    /// The last lines since `since`, at most `count`.
    pub(crate) fn last(&self, count: usize, since: Option<Instant>) -> Vec<&str> {
        let recent = self.0.iter().filter(|(at, _)| since.is_none_or(|since| *at >= since));
        let recent: Vec<_> = recent.map(|(_, line)| &**line).collect();
        recent[recent.len().saturating_sub(count)..].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        for piece in pieces {
            splitter.feed(piece, |line| lines.push(line));
        }
        splitter.end(&mut |line| lines.push(line));
        lines
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(split(&[b"on", b"e\ntwo\r\n", b"\n\nthr", b"ee"]), ["one", "two", "three"]);
        assert_eq!(split(&[b"", b"\n"]), Vec::<String>::new());
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory_without_an_end() {
        let mut splitter = Splitter::default();
        for _ in 0..1000 {
            splitter.feed(&[b'x'; 65536], |_| panic!("no line has ended"));
        }
        assert!(splitter.rest.capacity() <= 2 * MAX_LINE);
        let mut lines = Vec::new();
        splitter.feed(b"\nnext\n", |line| lines.push(line));
        assert_eq!(lines[0].len(), MAX_LINE + "…".len());
        assert_eq!(lines[1], "next");
    }

    #[test]
    fn words_forge_neither_lines_of_ours_nor_a_terminal() {
        let forged: &[u8] = b"nbd-kernel-holder: nbd0: detached event=detached\n";
        assert_eq!(
            split(&[forged])[0],
            "backend: nbd-kernel-holder: nbd0: detached event=detached"
        );
        assert!(split(&[b"\r  nbd-kernel-holder: nbd0: x"])[0].starts_with("backend: "));
        assert_eq!(split(&[b"\x1b[2Jred\x07\ttab\xff"]), ["\\u{1b}[2Jred\\u{7}\ttab\u{fffd}"]);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let now = Instant::now();
        let mut tail = Tail::default();
        (0..100).for_each(|n| tail.push(&n.to_string(), now));
        assert_eq!(tail.lines().count(), MAX_TAIL);
        assert_eq!(tail.last(2, None), ["98", "99"]);
        assert!(tail.last(2, Some(now + std::time::Duration::from_secs(1))).is_empty());
    }
}
