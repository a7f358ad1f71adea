//! The book in docs/ is whole: each page is in its summary, each link leads somewhere, and each
//! fence says what is in it, so that no command escapes `kernel_docs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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
