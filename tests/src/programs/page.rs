//! Pages of the documentation, and the commands on them.
//!
//! | on the page | is |
//! |---|---|
//! | a fence of `sh` | commands, one a line (`\` goes on), each of which must succeed |
//! | a fence of `console` | commands after `$ `, their further lines after `> `, what is typed into gdb after `(gdb) `; all else is what they print |
//! | `…` in such a line | any text; alone on its line: any number of lines |
//! | `no-run=REASON` behind `sh` or `console` | commands that are not run here, and why |
//! | a comment that begins with `<!-- run` | an `sh` fence that no reader has to see: what the page takes for granted |
//!
//! Every other fence has a language as well, so that no command can hide.

use std::fs;
use std::path::{Path, PathBuf};

/// A fence or a comment with commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// The line of its first line, counted from 1.
    pub line: usize,
    /// `sh`, `console`, or that of something else; may be empty.
    pub language: String,
    /// Why it is not run.
    pub no_run: Option<String>,
    /// What is in it.
    pub lines: Vec<String>,
}

/// A command, and what is said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Its line on the page.
    pub line: usize,
    /// For the shell.
    pub command: String,
    /// What is typed into it.
    pub input: String,
    /// What it prints, with wildcards; empty if the page does not say.
    pub expected: Vec<String>,
}

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// All pages, relative to the [`root`]: README.md and what is in docs/ and its folders, but not the
/// tables and the history of performance, which are files beside their page.
#[must_use]
pub fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    add_pages(Path::new("docs"), &mut pages);
    pages.sort();
    pages.insert(0, "README.md".into());
    pages
}

fn add_pages(folder: &Path, pages: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root().join(folder)).expect("a folder with pages") {
        let path = folder.join(entry.expect("an entry").file_name());
        if root().join(&path).is_dir() {
            if path != Path::new("docs/performance") {
                add_pages(&path, pages);
            }
        } else if path.extension() == Some("md".as_ref()) {
            pages.push(path);
        }
    }
}

/// The fences and comments of a page.
#[must_use]
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, String)> = None;
    for (number, line) in text.lines().enumerate() {
        if let Some((block, end)) = &mut open {
            if line.trim() == end {
                blocks.extend(open.take().map(|(block, _)| block));
            } else {
                block.lines.push(line.to_owned());
            }
        } else if let Some(info) = line.trim_start().strip_prefix("```") {
            let mut words = info.split_whitespace();
            let language = words.next().unwrap_or_default().to_owned();
            let no_run = words.find_map(|word| word.strip_prefix("no-run=")).map(str::to_owned);
            let block = Block { line: number + 2, language, no_run, lines: Vec::new() };
            open = Some((block, "```".into()));
        } else if line.trim() == "<!-- run" {
            let block = Block { line: number + 2, language: "sh".into(), ..Block::default() };
            open = Some((block, "-->".into()));
        }
    }
    assert!(open.is_none(), "a fence or a comment has no end: {open:?}");
    blocks
}

impl Block {
    /// Whether it has commands.
    #[must_use]
    pub fn has_commands(&self) -> bool {
        ["sh", "console"].contains(&self.language.as_str())
    }

    /// The commands in it.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut goes_on = false;
        for (at, line) in self.lines.iter().enumerate() {
            let new = |command: &str| Step {
                line: self.line + at,
                command: command.to_owned(),
                ..Step::default()
            };
            if self.language == "sh" {
                match steps.last_mut().filter(|_| goes_on) {
                    Some(step) => step.command = format!("{}\n{line}", step.command),
                    None if line.trim().is_empty() || line.starts_with('#') => {}
                    None => steps.push(new(line)),
                }
                goes_on = line.ends_with('\\');
            } else if let Some(command) = line.strip_prefix("$ ") {
                steps.push(new(command));
            } else {
                let step = steps.last_mut().expect("a command before what it prints");
                if let Some(more) = line.strip_prefix("> ") {
                    step.command = format!("{}\n{more}", step.command);
                } else if let Some(typed) = line.strip_prefix("(gdb) ") {
                    step.input = format!("{}{typed}\n", step.input);
                } else {
                    step.expected.push(line.clone());
                }
            }
        }
        steps
    }
}

/// Whether that is what was expected.
#[must_use]
pub fn prints(expected: &[String], actual: &[&str]) -> bool {
    match expected.split_first() {
        None => actual.is_empty(),
        Some((first, rest)) if first.trim() == "…" => {
            (0..=actual.len()).any(|skipped| prints(rest, &actual[skipped..]))
        }
        Some((first, rest)) => actual.split_first().is_some_and(|(line, more)| {
            let parts: Vec<&str> = first.trim_end().split('…').collect();
            says(&parts, line.trim_end()) && prints(rest, more)
        }),
    }
}

/// Whether a line has these parts, with anything between them.
fn says(parts: &[&str], line: &str) -> bool {
    match parts {
        [] => line.is_empty(),
        [only] => *only == line,
        [first, rest @ ..] => line.strip_prefix(first).is_some_and(|left| {
            let mut ends = left.char_indices().map(|(at, _)| at).chain([left.len()]);
            ends.any(|at| says(rest, &left[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn fences_and_comments_become_commands() {
        let text = "words\n\n<!-- run\ntruncate -s 1M a\n-->\n```console\n$ cat <<end\n> a…\n> end\na\n$ gdb\n(gdb) run\n```\n\
            ```sh no-run=needs-a-printer\nlpr\n```\n```text\n$ no\n```\n";
        let blocks = blocks(text);
        assert_eq!(blocks.len(), 4);
        assert_eq!(
            (blocks[0].line, blocks[0].steps()[0].command.as_str()),
            (4, "truncate -s 1M a")
        );
        let steps = blocks[1].steps();
        assert_eq!((steps[0].line, steps[0].command.as_str()), (7, "cat <<end\na…\nend"));
        assert_eq!((&steps[0].expected, steps[1].input.as_str()), (&lines("a"), "run\n"));
        assert_eq!(blocks[2].no_run.as_deref(), Some("needs-a-printer"));
        assert!(!blocks[3].has_commands());
    }

    #[test]
    fn a_line_of_sh_may_go_on() {
        let block = Block {
            language: "sh".into(),
            lines: lines("# why\na \\\n  b\n\nc"),
            ..Block::default()
        };
        let commands: Vec<_> = block.steps().into_iter().map(|step| step.command).collect();
        assert_eq!(commands, ["a \\\n  b", "c"]);
    }

    #[test]
    fn wildcards_stand_for_text_and_for_lines() {
        assert!(prints(&lines("a\nb … d\n…\ne"), &["a", "b c d", "x", "y", "e"]));
        assert!(prints(&lines("…"), &[]));
        assert!(prints(&lines("…b…"), &["abc"]) && prints(&lines("a…"), &["a"]));
        for (expected, actual) in
            [("a", "b"), ("a…c", "ab"), ("…b", "abc"), ("a\nb", "a"), ("a", "a\nb")]
        {
            let actual: Vec<_> = actual.lines().collect();
            assert!(!prints(&lines(expected), &actual), "{expected} {actual:?}");
        }
    }
}
