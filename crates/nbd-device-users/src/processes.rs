//! Processes that have a device open or mapped.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::sysfs::{Node, block_number};
use crate::user::{Finding, MAX_USERS, User};

/// So many mappings of one process are looked at; the kernel allows 65530 unless told otherwise.
const MAX_MAPPINGS: usize = 100_000;

/// Whether the file with this inode is one of the devices. A library is mapped by all processes,
/// and asked about once.
type Known = HashMap<(String, String), bool>;

/// Descriptors of all processes first, as looking at memory may have to wait.
pub(crate) fn scan(nodes: &[Node], ours: &[i32], report: &mut impl FnMut(Finding)) {
    let pids: Vec<i32> = pids().into_iter().filter(|pid| !ours.contains(pid)).collect();
    let is_ours = |path: &str| {
        block_number(Path::new(path)).is_some_and(|it| nodes.iter().any(|node| node.number == it))
    };
    let (openers, others): (Vec<i32>, Vec<i32>) =
        pids.into_iter().partition(|pid| opens(*pid, is_ours));
    let mut told = openers.len();
    for pid in openers.into_iter().take(MAX_USERS) {
        report(user("opened", pid));
    }
    let mut known = Known::new();
    for pid in others {
        if told >= MAX_USERS {
            return;
        }
        report(Finding::Process { pid, name: name(pid) });
        if maps(pid, &mut known, is_ours) {
            told += 1;
            report(user("mapped", pid));
        }
    }
}

fn user(how: &str, pid: i32) -> Finding {
    let what = format!("{how} by {} (pid {pid})", name(pid));
    Finding::User(User { what, ends_with: None, may_pass: true })
}

fn opens(pid: i32, is_ours: impl Fn(&str) -> bool) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| file.path().into_os_string().into_string().ok()).any(|it| is_ours(&it))
}

/// The numbers in `maps` are those of the file system that has the node; the link in `map_files`
/// leads to the node itself, whatever its name is by now.
fn maps(pid: i32, known: &mut Known, is_ours: impl Fn(&str) -> bool) -> bool {
    // Not text: a mapped file may have any name.
    let bytes = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().take(MAX_MAPPINGS).filter_map(mapped_file).any(|(range, file)| {
        *known.entry(file).or_insert_with(|| is_ours(&format!("/proc/{pid}/map_files/{range}")))
    })
}

/// Range, and device and inode, of a line like
/// `7f01-7f02 rw-s 00000000 00:05 123    /dev/nbd0`.
fn mapped_file(line: &str) -> Option<(&str, (String, String))> {
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next()?;
    let device = fields.nth(2)?;
    let inode = fields.next().filter(|inode| *inode != "0")?;
    Some((range, (device.to_owned(), inode.to_owned())))
}

fn name(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

/// All processes, in ascending order.
pub(crate) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_has_a_range_and_a_file_unless_it_is_anonymous() {
        let line = "7f0000000000-7f0000001000 rw-s 00000000 00:05 123    /dev/nbd0 (deleted)";
        let (range, file) = mapped_file(line).unwrap();
        assert_eq!(range, "7f0000000000-7f0000001000");
        assert_eq!(file, ("00:05".into(), "123".into()));
        assert_eq!(mapped_file("55d0-55d1 rw-p 00000000 00:00 0      [heap]"), None);
        assert_eq!(mapped_file("nonsense"), None);
    }

    #[test]
    fn this_process_is_among_them_and_has_files_open() {
        let me = std::process::id().cast_signed();
        assert!(pids().contains(&me));
        assert!(opens(me, |_| true));
        assert!(maps(me, &mut Known::new(), |_| true) && !maps(me, &mut Known::new(), |_| false));
    }

    #[test]
    fn a_scan_of_nothing_finds_nothing_and_ends() {
        let mut last = None;
        crate::scan("no-such-device", &[], |finding| {
            assert!(!matches!(finding, Finding::User(_)), "{finding:?}");
            last = Some(finding);
        });
        assert_eq!(last, Some(Finding::Complete));
    }
}
