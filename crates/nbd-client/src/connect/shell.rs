//! A command line for the shell in which the last command takes the shell's place.
//!
//! The server that we start must be the very process that we know: it is told to end when we do,
//! and a successor waits until it is dead. A shell that stays in front of it would be told instead.
//! So `exec` is put before the command that serves, which is the last one, behind its assignments:
//! `cd /x && A=1 server` becomes `cd /x && A=1 exec server`.
//!
//! Of a shell's grammar only as much is known here as that takes. A line that has more, such as a
//! pipe, is left as it is, with the shell in front of it.

/// Words that begin something else than a simple command.
const KEYWORDS: [&str; 18] = [
    "!", "{", "}", "[[", "case", "do", "done", "elif", "else", "esac", "fi", "for", "function",
    "if", "then", "time", "until", "while",
];

/// Commands of the shell itself, which `exec` would look for among the programs. Not those that are
/// programs as well and end with the line, such as `echo`.
const BUILTINS: [&str; 26] = [
    ".", ":", "alias", "break", "builtin", "cd", "command", "continue", "eval", "exit", "export",
    "fg", "hash", "jobs", "local", "read", "readonly", "return", "set", "shift", "source", "times",
    "ulimit", "umask", "unset", "wait",
];

/// A line for the shell.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    /// The shell stays, as the parent of what it starts.
    pub(crate) keeps_shell: bool,
}

/// The same command line, with `exec` before its last command where that is possible.
pub(crate) fn with_exec(line: &str) -> Line {
    let line = line.trim();
    match exec_place(line) {
        Some(ExecPlace::IsThere) => Line { text: line.into(), keeps_shell: false },
        Some(ExecPlace::At(at)) => {
            Line { text: format!("{}exec {}", &line[..at], &line[at..]), keeps_shell: false }
        }
        None => Line { text: line.into(), keeps_shell: true },
    }
}

/// Where `exec` stands or may stand.
enum ExecPlace {
    IsThere,
    At(usize),
}

fn exec_place(line: &str) -> Option<ExecPlace> {
    let commands = split(line)?;
    // What is to be done at the end of the shell would not be done.
    let keeps =
        |&at: &usize| begins_with(&line[at..], &KEYWORDS) || begins_with(&line[at..], &["trap"]);
    if commands.iter().any(keeps) {
        return None;
    }
    let is_command = |&&at: &&usize| !is_blank(&line[at..]);
    let last = *commands.iter().rfind(is_command)?;
    let at = last + assignments(&line[last..]);
    match &line[at..] {
        command if is_blank(command) || begins_with(command, &BUILTINS) => None,
        command if begins_with(command, &["exec"]) => Some(ExecPlace::IsThere),
        _ => Some(ExecPlace::At(at)),
    }
}

fn is_blank(command: &str) -> bool {
    command.trim_start_matches(|char: char| char.is_whitespace() || char == ';').is_empty()
}

/// Whether a command is one of these, behind its assignments. One that begins with a redirection may
/// have it anywhere.
fn begins_with(command: &str, words: &[&str]) -> bool {
    let mut all = command[assignments(command)..].split_whitespace();
    let first = all.next().unwrap_or_default();
    words.contains(&first) || (first.contains(['<', '>']) && all.any(|word| words.contains(&word)))
}

/// Where the commands of a list begin, if it is one of simple commands.
fn split(line: &str) -> Option<Vec<usize>> {
    let mut begins = vec![0];
    let mut scan = Scan::new(line);
    let mut before = ' ';
    while let Some((at, char, is_plain)) = scan.next_char()? {
        let rest = &line[at..];
        let follows_redirection = matches!(before, '<' | '>');
        match char {
            _ if !is_plain => {}
            ';' | '\n' => begins.push(at + 1),
            '&' if rest.starts_with("&&") => {
                scan.next_char()?;
                begins.push(at + 2);
            }
            // 2>&1, <&3 and &>file
            '&' if follows_redirection || rest.starts_with("&>") => {}
            '|' if before == '>' => {}
            '#' if before.is_whitespace() || before == ';' => return None,
            '&' | '|' | '(' | ')' => return None,
            '<' if rest.starts_with("<<") => return None,
            _ => {}
        }
        before = char;
    }
    Some(begins)
}

/// The length of the assignments that a command begins with, and of the blanks around them.
fn assignments(command: &str) -> usize {
    let mut end = command.len() - command.trim_start().len();
    loop {
        let rest = &command[end..];
        let name = rest.split(|char: char| !char.is_ascii_alphanumeric() && char != '_').next();
        let name = name.unwrap_or_default();
        let is_name = !name.is_empty() && !name.starts_with(|char: char| char.is_ascii_digit());
        if !is_name || !rest[name.len()..].starts_with('=') {
            return end;
        }
        let mut scan = Scan::new(rest);
        let blank = loop {
            match scan.next_char() {
                Some(Some((at, char, true))) if char.is_whitespace() => break at,
                Some(Some(_)) => {}
                _ => return command.len(),
            }
        };
        let after = &rest[blank..];
        end += blank + after.len() - after.trim_start().len();
    }
}

/// Goes through a line and tells which characters mean something to the shell.
struct Scan<'a> {
    chars: std::iter::Peekable<std::str::CharIndices<'a>>,
    /// What ends the quotation, or the command or variable in it, that this is in.
    inside: Vec<char>,
}

impl<'a> Scan<'a> {
    fn new(line: &'a str) -> Self {
        Self { chars: line.char_indices().peekable(), inside: Vec::new() }
    }

    /// The next character, where it is, and whether it is neither quoted nor part of something that
    /// is substituted. `None` if a quotation has no end, `Some(None)` at the end of the line.
    fn next_char(&mut self) -> Option<Option<(usize, char, bool)>> {
        let Some((at, char)) = self.chars.next() else {
            return self.inside.is_empty().then_some(None);
        };
        let end = self.inside.last().copied();
        let is_plain = end.is_none() && !matches!(char, '\\' | '\'' | '"' | '`' | '$');
        match (end, char) {
            (Some(end), char) if char == end => drop(self.inside.pop()),
            (Some('\''), _) => {}
            (_, '\\') => drop(self.chars.next()?),
            (Some('"'), '\'') => {}
            (_, '\'' | '"' | '`') => self.inside.push(char),
            (_, '$') => self.substitution(),
            (Some(')'), '(') => self.inside.push(')'),
            _ => {}
        }
        Some(Some((at, char, is_plain)))
    }

    fn substitution(&mut self) {
        let end = match self.chars.peek() {
            Some((_, '(')) => ')',
            Some((_, '{')) => '}',
            _ => return,
        };
        self.chars.next();
        self.inside.push(end);
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, with_exec};

    #[test]
    fn the_last_command_takes_the_place_of_the_shell() {
        for (line, expected) in [
            ("nbdkit -s memory 1G", "exec nbdkit -s memory 1G"),
            ("A=1 nbdkit", "A=1 exec nbdkit"),
            ("A=1 _B2='a b;c' nbdkit x=1", "A=1 _B2='a b;c' exec nbdkit x=1"),
            ("A=\"$(cat 'a b')\" nbdkit", "A=\"$(cat 'a b')\" exec nbdkit"),
            ("cd /x && nbdkit -s", "cd /x && exec nbdkit -s"),
            ("cd /x&&A=1 nbdkit", "cd /x&&A=1 exec nbdkit"),
            ("a; b\n c ;", "a; b\n exec c ;"),
            ("find . -exec a {} \\;", "exec find . -exec a {} \\;"),
            ("echo 'a && b'; c \"d;e\" f\\;g", "echo 'a && b'; exec c \"d;e\" f\\;g"),
            ("nbdkit 2>&1 >|log", "exec nbdkit 2>&1 >|log"),
            ("nbdkit ${X:-a;b} `c; d` $((1 + (2)))", "exec nbdkit ${X:-a;b} `c; d` $((1 + (2)))"),
            ("sh -c 'a | b'", "exec sh -c 'a | b'"),
            ("nbdkit a#b $# ''", "exec nbdkit a#b $# ''"),
            (">log nbdkit", "exec >log nbdkit"),
            ("set -e; . /etc/defaults; nbdkit", "set -e; . /etc/defaults; exec nbdkit"),
            ("exec nbdkit", "exec nbdkit"),
            ("a && exec nbdkit", "a && exec nbdkit"),
            ("A=1 exec nbdkit", "A=1 exec nbdkit"),
            (">log exec nbdkit", ">log exec nbdkit"),
        ] {
            assert_eq!(with_exec(line), Line { text: expected.into(), keeps_shell: false });
        }
    }

    #[test]
    fn what_is_more_than_that_is_left_as_it_is() {
        for line in [
            "eval nbdkit -s",
            "A=1 eval nbdkit -s",
            ">log eval nbdkit -s",
            "cd /x && . ./serve",
            "nbdkit -s; exit 3",
            "trap 'rm x' EXIT; nbdkit -s",
            "a | b",
            "a || b",
            "a & b",
            "(a; b)",
            "{ a; }",
            "f() { a; }; f",
            "if a; then b; fi",
            "while a; do b; done",
            "! a",
            "A=1",
            "A=1; B=2",
            "A=1 ;",
            ";",
            "a # b",
            "cat <<E\nb\nE",
            "a 'b",
            "a \"b",
            "a $(b",
            "",
        ] {
            assert_eq!(with_exec(line), Line { text: line.into(), keeps_shell: true });
        }
    }
}
