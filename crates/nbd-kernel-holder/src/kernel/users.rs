//! Who uses a device: what must be gone before it can be detached.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::Device;

/// Sentences like "mounted on /mnt" or "opened by fio (pid 4711)", none twice. `ours` are
/// processes that do not count.
pub(crate) fn users_of(device: &Device, ours: &[i32]) -> Vec<String> {
    let numbers = device_numbers(device);
    let mut found = mounts(&numbers);
    found.extend(swaps(device));
    found.extend(holders(device));
    // A mount or a holder says more than the open file behind it.
    if found.is_empty() {
        found.extend(openers(&numbers, ours));
    }
    let mut seen = HashSet::new();
    found.retain(|user| seen.insert(user.clone()));
    found
}

/// `major:minor` of the device and its partitions.
fn device_numbers(device: &Device) -> HashSet<String> {
    let folder = device.sys("");
    let read = |path: &Path| fs::read_to_string(path.join("dev")).ok();
    let partitions = fs::read_dir(&folder).into_iter().flatten().flatten();
    let partitions = partitions.filter_map(|entry| read(&entry.path()));
    read(&folder).into_iter().chain(partitions).map(|text| text.trim().to_owned()).collect()
}

/// Mounts in every mount namespace that we can see.
fn mounts(numbers: &HashSet<String>) -> Vec<String> {
    let mut namespaces = HashSet::new();
    let mut found = Vec::new();
    for pid in pids() {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else {
            continue;
        };
        if !namespaces.insert(namespace) {
            continue;
        }
        let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        found.extend(mounted_in(&text, numbers));
    }
    found
}

/// Lines of mountinfo: id, parent, major:minor, root, mount point, …
fn mounted_in(mountinfo: &str, numbers: &HashSet<String>) -> Vec<String> {
    let lines = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let number = fields.next()?;
        let place = fields.nth(1)?;
        numbers.contains(number).then(|| format!("mounted on {}", place.replace("\\040", " ")))
    });
    lines.collect()
}

fn swaps(device: &Device) -> Vec<String> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let path = device.path().display().to_string();
    let used = text.lines().filter_map(|line| line.split_ascii_whitespace().next()).any(|used| {
        let rest = used.strip_prefix(&path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
    });
    if used { vec!["used as swap".into()] } else { Vec::new() }
}

/// Device mapper, md and the like.
fn holders(device: &Device) -> Vec<String> {
    let folder = device.sys("");
    let partitions = fs::read_dir(&folder).into_iter().flatten().flatten();
    partitions
        .map(|entry| entry.path().join("holders"))
        .chain([folder.join("holders")])
        .flat_map(|holders| fs::read_dir(holders).into_iter().flatten().flatten())
        .map(|holder| format!("part of {}", holder.file_name().to_string_lossy()))
        .collect()
}

fn openers(numbers: &HashSet<String>, ours: &[i32]) -> Vec<String> {
    let others = pids().filter(|pid| !ours.contains(pid));
    others
        .filter(|pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files.filter_map(|file| fs::metadata(file.path()).ok()).any(|file| {
                let number = file.rdev();
                let text = format!("{}:{}", libc::major(number), libc::minor(number));
                file.file_type().is_block_device() && numbers.contains(&text)
            })
        })
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("opened by {} (pid {pid})", name.trim())
        })
        .collect()
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number_and_named_by_place() {
        let text = "22 1 0:20 / /sys rw - sysfs sysfs rw\n\
                    36 1 43:0 / /mnt/my\\040disk rw,relatime shared:1 - ext4 /dev/nbd0 rw\n\
                    37 1 43:16 / /other rw - ext4 /dev/nbd1 rw\n";
        let numbers = HashSet::from(["43:0".to_string(), "43:1".to_string()]);
        assert_eq!(mounted_in(text, &numbers), ["mounted on /mnt/my disk"]);
    }
}
