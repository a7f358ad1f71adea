//! File systems and swap on a block device, in every mount namespace that can be seen.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::mountinfo::Mount;
use crate::processes::pids;
use crate::sysfs::Node;
use crate::user::User;

/// What is mounted from the device, and swap on it.
pub(crate) fn users(node: &Node) -> Vec<User> {
    let mut namespaces = HashSet::new();
    let mut places = HashSet::new();
    let mut found = Vec::new();
    // In ascending order: what pid 1 sees is where an operator types.
    for pid in pids() {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else {
            continue;
        };
        if !namespaces.insert(namespace) {
            continue;
        }
        for place in mounted_in(&Mount::all_of(pid).unwrap_or_default(), node) {
            if places.insert(place.clone()) {
                found.push(mount(&place, pid, namespaces.len() == 1));
            }
        }
    }
    found.extend(swap(node));
    found
}

fn mount(place: &str, pid: i32, is_first_namespace: bool) -> User {
    let what = format!("mounted on {place}");
    let place = if place.contains([' ', '\'']) { format!("{place:?}") } else { place.to_owned() };
    let command = format!("umount {place}");
    match is_first_namespace {
        true => User::lasting(what, Some(command)),
        false => User::lasting(
            format!("{what} (in the mount namespace of pid {pid})"),
            Some(format!("nsenter -m -t {pid} {command}")),
        ),
    }
}

/// Where a block device is mounted.
fn mounted_in(mounts: &[Mount], node: &Node) -> Vec<String> {
    let is_its =
        |path: &Path| path.starts_with("/dev") && node.is_named_by(&path.to_string_lossy());
    // btrfs has a number of its own and names a device; XFS names the device of its log.
    let is_on_it = |mount: &&Mount| {
        mount.number == node.number
            || (mount.number.starts_with("0:") && is_its(&mount.source))
            || mount.options.iter().any(|(_, value)| is_its(value))
    };
    mounts.iter().filter(is_on_it).map(|mount| mount.point.to_string_lossy().into_owned()).collect()
}

fn swap(node: &Node) -> Option<User> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let paths = text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    let mut paths =
        paths.filter(|path| Path::new(path).starts_with("/dev") && node.is_named_by(path));
    let path = paths.next()?;
    Some(User::lasting("used as swap".into(), Some(format!("swapoff {path}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number_and_by_what_the_file_system_names() {
        let text = "22 1 0:20 / /sys rw - sysfs sysfs rw\n\
                    36 1 43:0 / /mnt/my\\040disk rw,relatime shared:1 - ext4 /dev/elsewhere rw\n\
                    37 1 43:16 / /other rw - ext4 /dev/other rw\n\
                    38 1 0:44 /sub /btrfs rw - btrfs /dev/nbd4096 rw,subvol=/sub\n\
                    39 1 8:1 / /xfs rw - xfs /dev/sda1 rw,logdev=/dev/nbd4096\n\
                    40 1 0:45 / /tmp rw - tmpfs nbd4096 rw\n";
        let node = Node { name: "nbd4096".into(), number: "43:0".into() };
        let mounts = Mount::parse(text.as_bytes());
        assert_eq!(mounted_in(&mounts, &node), ["/mnt/my disk", "/btrfs", "/xfs"]);
    }

    #[test]
    fn a_mount_of_another_namespace_is_ended_there() {
        let own = mount("/mnt", 1, true);
        assert_eq!(
            (&*own.what, own.ends_with.as_deref()),
            ("mounted on /mnt", Some("umount /mnt"))
        );
        let other = mount("/my disk", 77, false);
        assert!(other.what.contains("of pid 77"), "{}", other.what);
        assert_eq!(other.ends_with.as_deref(), Some("nsenter -m -t 77 umount \"/my disk\""));
    }
}
