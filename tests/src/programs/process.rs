//! Processes: ours, their memory, signals.

use std::fs;
use std::path::Path;

pub use nbd_control::process::is_dead;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ctl::bin_dir;

/// Pid and name of every process that runs one of our programs; of a sitter the name is
/// nbd-kernel-holder.
#[must_use]
pub fn ours() -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<_> = pids.filter_map(|pid: i32| Some((pid, our_program(pid)?))).collect();
    found.sort_unstable();
    found
}

/// Whether a process is a helper of a holder, for a call that may block. It may take a moment longer to end
/// than what it was for.
#[must_use]
pub fn is_helper(pid: i32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let task = name.trim().strip_prefix("nbd").and_then(|rest| rest.split_once('-'));
    task.is_some_and(|(number, task)| number.parse::<u32>().is_ok() && task != "sitter")
}

/// Those of our processes that this one has started.
#[must_use]
pub fn children(parent: i32) -> Vec<i32> {
    let pids = ours().into_iter().map(|(pid, _)| pid);
    pids.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

fn our_program(pid: i32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    if path.parent() != Some(bin_dir()) {
        return None;
    }
    let name = path.file_name()?.to_string_lossy().into_owned();
    // It may have been built anew since it was started.
    Some(name.trim_end_matches(" (deleted)").to_owned())
}

/// Sends a signal; false if there is no such process.
pub fn signal(pid: i32, signal: Signal) -> bool {
    assert!(pid > 1, "a signal for process {pid}");
    kill(Pid::from_raw(pid), signal).is_ok()
}

/// A line for each thread of a process and of those that it traces: what it does, which signals it
/// has not taken, and where it sleeps.
#[must_use]
pub fn describe(pid: i32) -> String {
    let mut text = String::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(threads) = fs::read_dir(entry.path().join("task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let status = read("status");
            let field =
                |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let owner = pid.to_string();
            if field("Tgid:") == Some(&owner) || field("TracerPid:") == Some(&owner) {
                let names = ["Name:", "Pid:", "State:", "TracerPid:", "SigPnd:", "ShdPnd:"];
                let words = names.map(|name| format!("{name} {}", field(name).unwrap_or("?")));
                text.push_str(&format!("{} in {}\n", words.join(" "), read("wchan")));
            }
        }
    }
    text
}

/// Whether a process sleeps in a kernel function with `part` in its name. The stack is right where
/// `wchan` is not, as in user-mode Linux; some kernels show only the latter.
#[must_use]
pub fn sleeps_in(pid: i32, part: &str) -> bool {
    ["stack", "wchan"].iter().any(|file| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.contains(part)
    })
}

/// Memory of a process in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident.
    pub rss: u64,
    /// Resident, and of what is shared only its share.
    pub pss: u64,
}

impl Memory {
    /// That of a process.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let folder = format!("/proc/{pid}");
        let folder = Path::new(&folder);
        Self {
            rss: field(&folder.join("status"), "VmRSS:"),
            pss: field(&folder.join("smaps_rollup"), "Pss:"),
        }
    }
}

fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{}: no {name}", path.display()))
}

/// Processor time that a process has used, in hundredths of a second.
#[must_use]
pub fn ticks(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    // Its name may have blanks in it. The state is field 3.
    let (_, fields) = text.rsplit_once(") ").expect("a process's fields");
    let fields: Vec<_> = fields.split_ascii_whitespace().collect();
    let of = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
    of(14) + of(15)
}

/// How often the threads of a process have been scheduled, as far as they then waited or were
/// interrupted.
#[must_use]
pub fn switches(pid: i32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process").flatten();
    let of = |path: &Path| {
        field(path, "voluntary_ctxt_switches:") + field(path, "nonvoluntary_ctxt_switches:")
    };
    threads.map(|thread| of(&thread.path().join("status"))).sum()
}

/// The effective user that a process runs as.
#[must_use]
pub fn user(pid: i32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let user = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
    user.unwrap_or_else(|| panic!("process {pid} has no user"))
}
