//! The book in docs/ is whole: each page is in its summary, each link leads somewhere, and each
//! fence says what is in it, so that no command escapes `kernel_docs`. And it stays short enough to be read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nbd_tests::page::{blocks, pages, root};

/// All that somebody may read.
fn texts() -> Vec<(String, String)> {
    let more = ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(Into::into);
    let paths = pages().into_iter().chain(more);
    let read = |path: &Path| fs::read_to_string(root().join(path)).expect("a page");
    paths.map(|path| (path.display().to_string(), read(&path))).collect()
}

/// A page without what is in its fences and in `code`.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            kept.extend(line.split('`').step_by(2));
            kept.push('\n');
        }
    }
    kept
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let rest = text.split("](").skip(1);
    rest.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// What a heading is called in a link, as GitHub and mdBook do it.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if let Some(heading) = line.strip_prefix('#').filter(|_| !fenced) {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            anchors.insert(kept.collect::<String>().replace(' ', "-"));
        }
    }
    anchors
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for (name, text) in texts() {
        let from = root().join(&name);
        for link in links(&prose(&text)).iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let to = from.parent().expect("a directory").join(file);
            let to = if file.is_empty() { from.clone() } else { to };
            let found = to.exists()
                && (anchor.is_empty()
                    || anchors(&fs::read_to_string(&to).expect("a page")).contains(anchor));
            if !found {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_page_is_in_the_summary() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).expect("a summary");
    let listed: BTreeSet<_> = links(&summary).into_iter().collect();
    for page in pages().iter().filter_map(|page| page.strip_prefix("docs").ok()) {
        let name = page.display().to_string();
        assert!(name == "SUMMARY.md" || listed.contains(&name), "{name} is not in docs/SUMMARY.md");
    }
}

#[test]
fn every_fence_says_what_is_in_it() {
    const OURS: [&str; 6] = ["$ ", "nbd-ctl ", "nbd-serve ", "scripts/", "cargo ", "systemctl "];
    for (name, text) in texts() {
        for block in blocks(&text) {
            let at = format!("{name}:{}", block.line);
            assert!(!block.language.is_empty(), "{at}: a fence without a language");
            if block.has_commands() {
                assert!(block.no_run.as_deref() != Some(""), "{at}: no-run without a reason");
                continue;
            }
            for line in &block.lines {
                let is_command = OURS.iter().any(|word| line.trim_start().starts_with(word));
                assert!(!is_command, "{at}: a command that nobody runs: {line}");
            }
        }
    }
}

/// What stands between spaces and has a letter or a digit: the lines of tables are no words.
fn words(text: &str) -> usize {
    text.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count()
}

#[test]
fn the_documents_stay_short() {
    const MAX_WORDS: usize = 30_000;
    const MAX_README_WORDS: usize = 600;
    // Decisions are single pages that are read one at a time; the summary is a list of all pages.
    let is_counted = |path: &&PathBuf| {
        !path.starts_with("docs/design/decisions") && **path != Path::new("docs/SUMMARY.md")
    };
    let count = |path: &PathBuf| {
        (words(&fs::read_to_string(root().join(path)).expect("a page")), path.display().to_string())
    };
    let mut counts: Vec<_> = pages().iter().filter(is_counted).map(count).collect();
    counts.sort();
    let all: usize = counts.iter().map(|(words, _)| words).sum();
    let lines: Vec<_> = counts.iter().map(|(words, page)| format!("{words:6} {page}")).collect();
    println!("{}\n{all:6} in all", lines.join("\n"));
    assert!(all <= MAX_WORDS, "{all} words, more than {MAX_WORDS}:\n{}", lines.join("\n"));
    let readme = counts.iter().find(|(_, page)| page == "README.md").expect("a README").0;
    assert!(
        readme <= MAX_README_WORDS,
        "README.md has {readme} words, more than {MAX_README_WORDS}"
    );
}
