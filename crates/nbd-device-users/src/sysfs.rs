//! Block devices by name and number, and the short files that describe them.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

/// Attributes of /sys are at most a page long.
const MAX_ATTRIBUTE: usize = 4096;

/// A block device: a whole disk or a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Like `nbd0`, `nbd0p1` or `dm-0`.
    pub name: String,
    /// `major:minor`.
    pub number: String,
}

impl Node {
    /// The device of this name, if there is one.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        let number = attribute(&class_folder(name).join("dev"))?;
        Some(Self { name: name.to_owned(), number })
    }

    /// Where /sys describes it.
    pub(crate) fn folder(&self) -> PathBuf {
        class_folder(&self.name)
    }

    /// Whether a path that the kernel shows leads here. It may be one of another mount namespace,
    /// or of a node that was removed since; then its last part decides.
    pub(crate) fn is_named_by(&self, path: &str) -> bool {
        let path = path.trim_end_matches(['\0', '\n']);
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        match block_number(Path::new(path)) {
            Some(number) => number == self.number,
            None => Path::new(path).file_name().is_some_and(|name| *name == *self.name),
        }
    }
}

/// Unlike /sys/block this has partitions as well.
fn class_folder(name: &str) -> PathBuf {
    // A slash in the name of a device is an exclamation mark in /sys.
    Path::new("/sys/class/block").join(name.replace('/', "!"))
}

/// An attribute without its newline.
pub(crate) fn attribute(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_ATTRIBUTE)]);
    Some(text.trim_end().to_owned())
}

/// The names of a folder's entries, none if it cannot be read.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// `major:minor` of the block device that a path leads to. No server of a network or user-mode file
/// system is asked, which might not answer.
pub(crate) fn block_number(path: &Path) -> Option<String> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = statx(CWD, path, flags, StatxFlags::TYPE).ok()?;
    let is_block = FileType::from_raw_mode(found.stx_mode.into()).is_block_device();
    is_block.then(|| format!("{}:{}", found.stx_rdev_major, found.stx_rdev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_another_namespace_is_known_by_its_last_part() {
        let node = Node { name: "nbd4096".into(), number: "43:65535".into() };
        for path in ["/dev/nbd4096", "/gone/nbd4096 (deleted)\n", "nbd4096"] {
            assert!(node.is_named_by(path), "{path}");
        }
        for path in ["/dev/nbd40960", "/dev/nbd409", "/nbd4096/file", "", "/"] {
            assert!(!node.is_named_by(path), "{path}");
        }
    }

    #[test]
    fn what_is_no_block_device_has_no_number() {
        assert_eq!(block_number(Path::new("/dev/null")), None);
        assert_eq!(block_number(Path::new("/nowhere")), None);
        assert_eq!(Node::find("no-such-device"), None);
    }
}
