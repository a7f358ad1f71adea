//! All text that users read, in one file for a review side by side: the help of every command, and every
//! sentence of the sources that is an error, a warning, an event of the log or an answer.
//!
//! `cargo test -p nbd-manual --test catalogue` writes it and prints its place.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};

/// What stands before a sentence that is shown to users.
const MARKS: [&str; 24] = [
    "#[error(",
    "error!(",
    "warn!(",
    "info!(",
    "eprint(",
    "progress(",
    "notice(",
    ".warn(",
    ".log(",
    "complain(",
    "other(",
    "way(",
    "add(",
    "Usage(",
    "Failure::new(",
    "failure(",
    "format!(",
    "Err(",
    "text = ",
    "detail: ",
    "=> ",
    "Some(",
    "push_str(",
    "lasting(",
];
/// Crates whose sentences reach users, and no others.
const CRATES: [&str; 9] = [
    "nbd-ctl",
    "nbd-kernel-holder",
    "nbd-serve",
    "nbd-server",
    "nbd-client",
    "nbd-backend",
    "nbd-control",
    "nbd-net",
    "nbd-record",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" && name != "explore" {
            sources(&path, found);
        } else if name.ends_with(".rs") && !["tests.rs", "testing.rs", "fixture.rs"].contains(&name)
        {
            found.push(path);
        }
    }
    found.sort();
}

/// The string that begins at a quote, with its lines joined, and what is behind it.
fn string(text: &str) -> Option<(String, &str)> {
    let mut said = String::new();
    let mut letters = text.strip_prefix('"')?.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((said, &text[at + 2..])),
            '\\' => match letters.next()?.1 {
                // The source goes on in the next line, behind its blanks.
                '\n' => {
                    let rest = letters.as_str().trim_start();
                    let (more, rest) = string_rest(rest)?;
                    said.push_str(&more);
                    return Some((said, rest));
                }
                'n' => said.push('\n'),
                other => said.push(other),
            },
            other => said.push(other),
        }
    }
    None
}

fn string_rest(text: &str) -> Option<(String, &str)> {
    let quoted = format!("\"{text}");
    let (said, rest) = string(&quoted)?;
    Some((said, &text[text.len() - rest.len()..]))
}

/// Sentences have several words; the rest is names and formats.
fn is_sentence(text: &str) -> bool {
    text.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic)).count() >= 3
}

/// The sentences of a source, with the lines where they begin.
fn sentences(source: &str) -> Vec<(usize, String)> {
    let body = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut found = Vec::new();
    let mut rest = body;
    while let Some(at) = rest.find('"') {
        let line_start = rest[..at].rfind('\n').map_or(0, |end| end + 1);
        let is_comment = rest[line_start..at].trim_start().starts_with("//");
        if is_comment || rest[..at].ends_with(['\'', '\\']) {
            rest = &rest[at + 1..];
            continue;
        }
        let before = rest[..at].trim_end();
        let is_marked = MARKS.iter().any(|mark| before.ends_with(mark.trim_end()));
        let is_among_arguments = before.ends_with([',', '(', '{']);
        let number = body[..body.len() - rest.len() + at].matches('\n').count() + 1;
        let Some((said, behind)) = string(&rest[at..]) else { break };
        if (is_marked || is_among_arguments) && is_sentence(&said) {
            found.push((number, said));
        }
        rest = behind;
    }
    found
}

#[test]
fn all_that_users_read_is_in_one_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut text = String::from("# Help\n");
    let mut commands = vec![vec!["nbd-ctl".to_owned()]];
    commands.extend(["nbd-serve", "nbd-kernel-holder"].map(|name| vec![name.to_owned()]));
    let mut count = 0;
    while let Some(words) = commands.pop() {
        let Some(help) = nbd_manual::help(&words) else { continue };
        text.push_str(&format!("\n## {} --help\n\n{help}\n", words.join(" ")));
        count += 1;
        if words == ["nbd-ctl"] {
            let names = help.lines().filter_map(|line| line.strip_prefix("  "));
            let names = names.filter_map(|line| line.split(' ').next());
            let names = names.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
            commands.extend(names.map(|name| vec!["nbd-ctl".into(), name.into()]));
        }
    }
    text.push_str("\n# Sentences\n");
    let mut said = 0;
    for name in CRATES {
        let mut files = Vec::new();
        sources(&root.join("crates").join(name).join("src"), &mut files);
        for file in files {
            let found = sentences(&fs::read_to_string(&file).unwrap());
            if found.is_empty() {
                continue;
            }
            let shown = file.strip_prefix(&root).unwrap().display();
            text.push_str(&format!("\n## {shown}\n\n"));
            for (line, sentence) in found {
                said += 1;
                text.push_str(&format!("{line:5}  {}\n", sentence.replace('\n', "\n       ")));
            }
        }
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("catalogue.txt");
    fs::write(&place, &text).unwrap();
    println!("{}: {count} commands, {said} sentences", place.display());
    assert!(count > 25 && said > 500, "{count} commands, {said} sentences");
    // Subjects are named.
    for word in ["whoever", "somebody", "nobody", "everybody"] {
        let is_it = |line: &&str| {
            let mut words = line.split(|letter: char| !letter.is_ascii_alphanumeric());
            words.any(|it| it.eq_ignore_ascii_case(word))
        };
        let lines: Vec<_> = text.lines().filter(is_it).collect();
        assert!(lines.is_empty(), "{word}: name the subject: {lines:#?}");
    }
    // One of each kind.
    for words in [
        "Make a block device of an export",
        "is a {0}: only files and block devices can be served",
        "its holder has died",
        "continue there, or detach the debugger",
        "the nbd driver is not loaded: modprobe nbd",
        "check the path, or make what is missing",
    ] {
        assert!(text.contains(words), "{words}");
    }
}

#[test]
fn strings_are_read_as_the_compiler_does() {
    let source =
        "#[error(\"one two \\\n    three\")]\nlet x = format!(\"a {b} \\\"c\\\" d e\", b);\n";
    assert_eq!(
        sentences(source),
        [(1, "one two three".to_owned()), (3, "a {b} \"c\" d e".to_owned())]
    );
}
