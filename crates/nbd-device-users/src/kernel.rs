//! Parts of the kernel that open a block device because a path was written to their configuration.
//! Most of them do not claim it, so the kernel lets any other user claim it, and no process has it
//! open.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sysfs::{Node, attribute};
use crate::user::User;

/// So many entries of one kind are looked at.
const MAX_ENTRIES: usize = 65_536;

/// Who it is, where it tells its device, how to read that, and what ends it.
struct Consumer {
    name: &'static str,
    files: &'static str,
    reads: fn(&Path, &Node) -> bool,
    ends_with: fn(&Path) -> Option<String>,
}

const CONSUMERS: [Consumer; 9] = [
    Consumer {
        name: "the LIO target",
        files: "/sys/kernel/config/target/core/*/*/info",
        reads: target_info,
        ends_with: |file| {
            let kind = parent_name(file, 2)?.split_once('_')?.0.to_owned();
            let kind = if kind == "iblock" { "block" } else { &kind };
            Some(format!("targetcli /backstores/{kind} delete {}", parent_name(file, 1)?))
        },
    },
    Consumer {
        name: "the NVMe target",
        files: "/sys/kernel/config/nvmet/subsystems/*/namespaces/*/device_path",
        reads: |file, node| {
            attribute(&file.with_file_name("enable")).as_deref() != Some("0") && path(file, node)
        },
        ends_with: |file| Some(format!("echo 0 >{}", file.with_file_name("enable").display())),
    },
    Consumer {
        name: "the RDMA block server rnbd",
        files: "/sys/devices/virtual/rnbd-server/ctl/devices/*/block_dev",
        reads: |file, node| attribute(&file.join("dev")).as_deref() == Some(&*node.number),
        ends_with: |file| {
            let sessions = file.with_file_name("sessions");
            Some(format!("echo 1 | tee {}/*/force_close", sessions.display()))
        },
    },
    Consumer {
        name: "the USB mass storage gadget",
        files: "/sys/kernel/config/usb_gadget/*/functions/mass_storage.*/lun.*/file",
        reads: path,
        ends_with: |file| Some(format!("echo >{}", file.display())),
    },
    Consumer {
        name: "the Xen block backend",
        files: "/sys/bus/xen-backend/devices/vbd-*/physical_device",
        reads: hexadecimal_number,
        ends_with: |file| {
            let (domain, device) = parent_name(file, 1)?
                .strip_prefix("vbd-")?
                .split_once('-')
                .map(|(domain, device)| (domain.to_owned(), device.to_owned()))?;
            Some(format!("xl block-detach {domain} {device}"))
        },
    },
    Consumer {
        name: "zram, to write back to",
        files: "/sys/block/zram*/backing_dev",
        reads: path,
        ends_with: |file| Some(format!("echo 1 >{}", file.with_file_name("reset").display())),
    },
    Consumer {
        name: "block2mtd",
        files: "/sys/class/mtd/mtd*/name",
        reads: |file, node| {
            let name = attribute(file).unwrap_or_default();
            name.strip_prefix("block2mtd: ").is_some_and(|path| node.is_named_by(path))
        },
        ends_with: |_| Some("rmmod block2mtd".into()),
    },
    Consumer {
        name: "pstore, for crash logs",
        files: "/sys/module/pstore_blk/parameters/blkdev",
        reads: path,
        ends_with: |_| Some("rmmod pstore_blk".into()),
    },
    Consumer {
        name: "a btrfs file system of several devices",
        files: "/sys/fs/btrfs/*/devices/*",
        reads: |file, node| file.file_name().is_some_and(|name| *name == *node.name),
        ends_with: |_| None,
    },
];

/// Who of them uses this very device.
pub(crate) fn users(node: &Node) -> Vec<User> {
    let configured = CONSUMERS.iter().flat_map(|consumer| {
        let files = matching(consumer.files).into_iter();
        files.filter(|file| (consumer.reads)(file, node)).map(|file| {
            User::lasting(format!("used by {}", consumer.name), (consumer.ends_with)(&file))
        })
    });
    configured.chain(journal(node)).chain(cache(node)).collect()
}

fn matching(pattern: &str) -> Vec<PathBuf> {
    let found = glob::glob(pattern).map(|paths| paths.flatten().take(MAX_ENTRIES).collect());
    // The patterns are those above, and a test reads them all.
    found.unwrap_or_default()
}

/// The attribute is a path.
fn path(file: &Path, node: &Node) -> bool {
    attribute(file).is_some_and(|path| path.starts_with('/') && node.is_named_by(&path))
}

/// The attribute is `major:minor` in hexadecimal.
fn hexadecimal_number(file: &Path, node: &Node) -> bool {
    let text = attribute(file).unwrap_or_default();
    let number = text.split_once(':').and_then(|(major, minor)| {
        let parse = |text| u32::from_str_radix(text, 16).ok();
        Some(format!("{}:{}", parse(major)?, parse(minor)?))
    });
    number.as_deref() == Some(&*node.number)
}

fn target_info(file: &Path, node: &Node) -> bool {
    attribute(file).is_some_and(|text| is_target_on(&text, node))
}

/// `… Major: 43 Minor: 0  CLAIMED: IBLOCK` of a block device, `… File: /dev/nbd0  Size: …` of what
/// the target takes for a file.
fn is_target_on(info: &str, node: &Node) -> bool {
    let words: Vec<&str> = info.split_ascii_whitespace().collect();
    let after = |label: &str| {
        let at = words.iter().position(|word| *word == label)?;
        words.get(at + 1).copied()
    };
    let number =
        after("Major:").zip(after("Minor:")).map(|(major, minor)| format!("{major}:{minor}"));
    number.as_deref() == Some(&*node.number)
        || after("File:").is_some_and(|it| node.is_named_by(it))
}

/// The journal of a file system elsewhere. A journal inside of its file system has an inode in the
/// name, and that one is mounted from here.
fn journal(node: &Node) -> Option<User> {
    let what = "used for the journal of a file system on another device";
    let exists = fs::exists(format!("/proc/fs/jbd2/{}", node.name)).unwrap_or(false);
    exists.then(|| User::lasting(what.into(), None))
}

/// A bcache device that caches another one; as one that is cached it has a holder.
fn cache(node: &Node) -> Option<User> {
    let set = node.folder().join("bcache/set");
    let command = format!("echo 1 >{}", set.join("stop").display());
    set.exists().then(|| User::lasting("used as a cache by bcache".into(), Some(command)))
}

/// The name of the folder so many levels above.
fn parent_name(file: &Path, levels: usize) -> Option<String> {
    Some(file.ancestors().nth(levels)?.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node { name: "nbd4096".into(), number: "43:65535".into() }
    }

    #[test]
    fn every_pattern_can_be_read() {
        for consumer in &CONSUMERS {
            assert!(glob::glob(consumer.files).is_ok(), "{}", consumer.files);
        }
        assert_eq!(users(&node()), []);
    }

    #[test]
    fn a_target_names_its_device_by_number_or_by_path() {
        let block = "Status: ACTIVATED  Max Queue Depth: 0\n        iBlock device: nbd4096  \
                     UDEV PATH: /dev/x  readonly: 0\n        Major: 43 Minor: 65535  CLAIMED: IBLOCK\n";
        let file =
            "        TCM FILEIO ID: 0        File: /dev/nbd4096  Size: 1048576  Mode: O_DSYNC\n";
        assert!(is_target_on(block, &node()) && is_target_on(file, &node()));
        let other = "iBlock device: nbd1\n Major: 43 Minor: 1  CLAIMED: IBLOCK\n";
        assert!(!is_target_on(other, &node()) && !is_target_on("", &node()));
    }

    #[test]
    fn each_is_ended_by_a_command_of_its_own() {
        let ends = |at: usize, file: &str| (CONSUMERS[at].ends_with)(Path::new(file)).unwrap();
        assert_eq!(
            ends(0, "/sys/kernel/config/target/core/iblock_0/disk/info"),
            "targetcli /backstores/block delete disk"
        );
        assert_eq!(
            ends(1, "/sys/kernel/config/nvmet/subsystems/s/namespaces/1/device_path"),
            "echo 0 >/sys/kernel/config/nvmet/subsystems/s/namespaces/1/enable"
        );
        assert_eq!(
            ends(4, "/sys/bus/xen-backend/devices/vbd-1-51712/physical_device"),
            "xl block-detach 1 51712"
        );
    }
}
