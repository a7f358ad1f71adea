//! docs/reference/nbd-protocol-support.md: nothing of the specification is missing, and each test that it names is
//! there.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page() -> String {
    fs::read_to_string(repository().join("docs/reference/nbd-protocol-support.md")).unwrap()
}

/// Rows of tables, without heads and lines, and whether they are about our client.
fn rows(page: &str) -> Vec<(bool, Vec<String>)> {
    let mut is_client = false;
    let mut rows: Vec<(bool, Vec<String>)> = Vec::new();
    // What precedes it says where tests are.
    for line in page.lines().skip_while(|line| *line != "## Handshake") {
        is_client |= line == "## As a client";
        let Some(row) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            continue;
        };
        if row.starts_with('-') {
            // What precedes the line is a head.
            rows.pop();
            continue;
        }
        rows.push((is_client, row.split('|').map(|cell| cell.trim().to_owned()).collect()));
    }
    rows
}

/// The file of a test, and the function in it if one is named.
fn place(is_client: bool, name: &str) -> (PathBuf, Option<&str>) {
    let (file, function) = match name.split_once("::") {
        Some((file, function)) => (file, Some(function)),
        None => (name, None),
    };
    let path = match file.split_once('/') {
        _ if file.ends_with(".rs") => format!("crates/{file}"),
        Some(("proto", file)) => format!("crates/nbd-proto/tests/it/{file}.rs"),
        Some(("server", file)) => format!("crates/nbd-server/tests/it/{file}.rs"),
        Some(("network", "*")) => "crates/nbd-serve/tests/network".into(),
        Some(("network", file)) => format!("crates/nbd-serve/tests/network/{file}.rs"),
        _ if file.starts_with("kernel_") => format!("tests/tests/{file}.rs"),
        _ if is_client => format!("crates/nbd-client/tests/client/{file}.rs"),
        _ => panic!("{name}: what is that short for?"),
    };
    (repository().join(path), function)
}

#[test]
fn each_test_that_is_named_exists() {
    let page = page();
    let mut seen = BTreeSet::new();
    for (is_client, cells) in rows(&page) {
        let tests = cells.last().unwrap().replace('`', "");
        for name in tests.split([',', ';']).map(str::trim).filter(|name| !name.is_empty()) {
            if matches!(name, "–" | "all that connects") || name.contains(' ') {
                assert!(!name.contains('/'), "{cells:?}: what test is {name:?}?");
                continue;
            }
            let (path, function) = place(is_client, name);
            assert!(path.exists(), "{cells:?} names {name}, and there is no {}", path.display());
            if let Some(function) = function {
                let text = fs::read_to_string(path).unwrap();
                let test = format!("#[test]\nfn {function}()");
                assert!(text.contains(&test), "{cells:?} names {name}, and there is none");
            }
            seen.insert(name.to_owned());
        }
    }
    assert!(seen.len() > 25, "only {} tests are named: is the page read right?", seen.len());
}

#[test]
fn what_is_supported_names_its_test() {
    let page = page();
    let mut count = 0;
    for (_, cells) in rows(&page) {
        let [_, what, tests] = &cells[..] else {
            continue;
        };
        let is_title = what.is_empty();
        let is_not = ["no:", "never", "not ", "none", "withdrawn"];
        let is_not = is_not.iter().any(|word| what.starts_with(word)) || what == "no";
        if !is_title && !is_not {
            assert!(!matches!(&**tests, "" | "–"), "no test is named: {cells:?}");
            count += 1;
        }
    }
    assert!(count > 70, "only {count} rows: is the page read right?");
}

/// The names that the specification gives to what we know of it.
fn known(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            known(&path, names);
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        names.extend(words.filter(|word| word.starts_with("NBD_")).map(str::to_owned));
    }
}

#[test]
fn everything_that_has_a_name_is_on_the_page() {
    let mut names = BTreeSet::new();
    known(&repository().join("crates/nbd-proto/src"), &mut names);
    assert!(names.len() > 60, "only {} names are known: {names:?}", names.len());
    let page = page();
    let is_there = |name: &String| {
        page.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .any(|word| word == name)
    };
    let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "not on the page: {missing:?}");
}
