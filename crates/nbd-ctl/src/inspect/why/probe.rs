//! From `/proc` and `/sys` to facts. Only names of open files are read, never the files: looking
//! at a file on a device that is stuck could be stuck as well.

use std::fs;
use std::path::PathBuf;

use nbd_control::process::{stat, tracer};
use nbd_device_users::{Mount, whole_devices_below};

use super::above::Stack;
use super::process::{Process, Tracer};
use super::stack;
use crate::device::Device;
use crate::inspect::listed::Listed;

/// A process as it is now.
pub(crate) fn process(pid: i32) -> Option<Process> {
    let main = stat(pid)?.state;
    let sleeper = if main == 'D' { Some(pid) } else { sleeping_thread(pid) };
    let thread = format!("/proc/{pid}/task/{}", sleeper.unwrap_or(pid));
    let stack = stack::functions(&read(&format!("{thread}/stack")));
    let wchan = read(&format!("{thread}/wchan"));
    Some(Process {
        pid,
        name: name(pid),
        state: if sleeper.is_some() { 'D' } else { main },
        tracer: tracer(pid).map(|pid| Tracer { pid, name: name(pid) }),
        doing: stack::doing(&stack),
        wchan: stack.contains(&wchan).then_some(wchan),
        stack,
    })
}

/// A thread in uninterruptible sleep.
fn sleeping_thread(pid: i32) -> Option<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let mut tasks = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    tasks.find(|task| stat(*task).is_some_and(|stat| stat.state == 'D'))
}

fn name(pid: i32) -> String {
    read(&format!("/proc/{pid}/comm")).trim_end().to_owned()
}

fn read(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Those that use the device and are in uninterruptible sleep, or were killed in it.
pub(crate) fn waiters(stack: &Stack, ours: &[i32]) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<Process> = pids
        .filter(|pid: &i32| !ours.contains(pid))
        .filter_map(process)
        .filter(|process| process.state == 'D' && uses(process.pid, stack))
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Whether a process uses the device or what is stacked on it: by an open file, by its command
/// line, or as a thread of the kernel that works for it.
pub(crate) fn uses(pid: i32, stack: &Stack) -> bool {
    let mounts = mount_points(&Mount::all_of(pid).unwrap_or_default(), stack);
    let is_its =
        |path: &str| stack.has_node(path) || mounts.iter().any(|mount| is_below(path, mount));
    let link = |what: &str| fs::read_link(format!("/proc/{pid}/{what}")).ok();
    let paths = open_files(pid).into_iter().chain(link("cwd")).chain(link("exe"));
    let opens = paths.into_iter().any(|path| path.to_str().is_some_and(is_its));
    let command = read(&format!("/proc/{pid}/cmdline"));
    // One that is still on its way to a file has it on its command line, if anywhere.
    let names = command.split(['\0', '=']).any(is_its);
    opens || names || (command.is_empty() && stack.has_worker(&name(pid)))
}

fn open_files(pid: i32) -> Vec<PathBuf> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).collect()
}

/// NBD devices that a process has open, or that are below a block device that it has open.
pub(crate) fn storage(pid: i32) -> Vec<Device> {
    let nodes = open_files(pid).into_iter().filter(|path| path.starts_with("/dev"));
    let mut found: Vec<Device> = nodes
        .flat_map(|path| whole_devices_below(&path))
        .filter_map(|name| Device::literal(&name))
        .collect();
    found.sort();
    found.dedup();
    found
}

fn is_below(path: &str, mount: &str) -> bool {
    path.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where the device is mounted.
fn mount_points(mounts: &[Mount], stack: &Stack) -> Vec<String> {
    let is_its = |mount: &&Mount| {
        stack.has_number(&mount.number)
            || mount.source.to_str().is_some_and(|it| stack.has_node(it))
    };
    mounts.iter().filter(is_its).map(|mount| mount.point.to_string_lossy().into_owned()).collect()
}

/// What the block layer waits for.
pub(crate) fn block_layer(device: Device) -> u64 {
    let text = read(&format!("/sys/block/{device}/inflight"));
    text.split_ascii_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// What a process is to a device, if it is one of those that hold or serve it.
pub(crate) fn role(pid: i32, listed: &Listed) -> Option<&'static str> {
    let roles = match listed {
        Listed::Attached(status) => [
            (Some(status.holder_pid), "the holder"),
            (Some(status.sitter_pid), "the sitter"),
            (status.backend.pid, "the backend"),
        ],
        Listed::Orphaned(orphan) => [
            (Some(orphan.holder_pid), "the late holder"),
            (Some(orphan.sitter_pid), "the sitter"),
            (orphan.backend_pid, "the backend"),
        ],
        Listed::Abandoned { backend_pid, .. } => {
            [(None, "the holder"), (None, "the sitter"), (*backend_pid, "the backend")]
        }
        _ => return None,
    };
    roles.into_iter().find(|(it, _)| *it == Some(pid)).map(|(_, role)| role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_the_device_and_its_partitions_are_found() {
        let text = "\
36 1 43:0 / /mnt/my\\040disk rw - ext4 /dev/nbd1 rw
37 1 43:1 / /part rw shared:1 - ext4 /dev/nbd1p1 rw
38 1 43:160 / /other rw - ext4 /dev/nbd10 rw
";
        let mounts = Mount::parse(text.as_bytes());
        assert_eq!(mount_points(&mounts, &Stack::of(Device(1))), ["/mnt/my disk", "/part"]);
        assert!(is_below("/mnt/a", "/mnt") && !is_below("/mnt2", "/mnt"));
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let me = process(std::process::id().cast_signed()).unwrap();
        assert!(!me.name.is_empty() && me.tracer.is_none());
        assert!(!uses(me.pid, &Stack::of(Device(4_000_000))));
    }
}
