//! Which block devices a file needs: whether a read of it waits for a given device. Found out from /proc
//! and /sys alone, as asking the file itself could be the first to wait.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::device::Device;

/// A file on a file system in a file on … does not go on for ever.
const MAX_DEPTH: u32 = 8;

/// The mounted file systems, and where the devices below them are described.
#[derive(Debug)]
pub(crate) struct StorageDeps {
    mounts: Vec<Mount>,
    /// /sys
    sys: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// `major:minor`; the major number is 0 if no single device is below it.
    number: String,
    point: PathBuf,
    source: PathBuf,
    /// Directories that an overlay is made of.
    layers: Vec<PathBuf>,
}

impl StorageDeps {
    /// Of this process, now.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let text = fs::read("/proc/self/mountinfo")?;
        Ok(Self { mounts: mounts(&text), sys: "/sys".into() })
    }

    /// Whether `path`, absolute and without links, needs the device.
    pub(crate) fn needs(&self, device: Device, path: &Path) -> bool {
        self.file_needs(&device.to_string(), path, MAX_DEPTH)
    }

    fn file_needs(&self, device: &str, path: &Path, depth: u32) -> bool {
        let Some(depth) = depth.checked_sub(1) else {
            return false;
        };
        // The longest, and of two on the same place the one on top.
        let mounts = self.mounts.iter().filter(|mount| path.starts_with(&mount.point));
        let Some(mount) = mounts.max_by_key(|mount| mount.point.as_os_str().len()) else {
            return false;
        };
        if !mount.number.starts_with("0:") {
            return self.block_needs(device, &mount.number, depth);
        }
        // btrfs and its like name one device of theirs, an overlay names directories.
        let source = mount.source.starts_with("/dev").then(|| fs::metadata(&mount.source).ok());
        let number = source.flatten().map(|meta| number(meta.rdev()));
        number.is_some_and(|number| self.block_needs(device, &number, depth))
            || mount.layers.iter().any(|layer| self.file_needs(device, layer, depth))
    }

    /// Whether the block device with this number is `device`, a part of it, or made of it.
    fn block_needs(&self, device: &str, number: &str, depth: u32) -> bool {
        let Some(depth) = depth.checked_sub(1) else {
            return false;
        };
        let Ok(folder) = fs::canonicalize(self.sys.join("dev/block").join(number)) else {
            return false;
        };
        if folder.ancestors().take(2).any(|folder| folder.ends_with(device)) {
            return true;
        }
        let whole = if folder.join("partition").exists() { folder.join("..") } else { folder };
        let backing = fs::read(whole.join("loop/backing_file")).unwrap_or_default();
        let backing = PathBuf::from(std::ffi::OsString::from_vec(backing.trim_ascii_end().into()));
        if backing.is_absolute() && self.file_needs(device, &backing, depth) {
            return true;
        }
        let slaves = fs::read_dir(whole.join("slaves")).into_iter().flatten().flatten();
        slaves
            .filter_map(|slave| fs::read_to_string(slave.path().join("dev")).ok())
            .any(|number| self.block_needs(device, number.trim_ascii_end(), depth))
    }
}

fn mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(mount).collect()
}

/// A line like `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/root rw,lowerdir=…`.
fn mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let options = fields.get(dash + 3).copied().unwrap_or_default();
    let layers = options.split(|&byte| byte == b',').filter_map(|option| {
        let (name, value) = option.split_at(option.iter().position(|&byte| byte == b'=')?);
        matches!(name, b"lowerdir" | b"upperdir").then(|| &value[1..])
    });
    let layers = layers.flat_map(|value| value.split(|&byte| byte == b':')).map(path);
    Some(Mount {
        number: String::from_utf8_lossy(fields.get(2)?).into_owned(),
        point: path(fields.get(4)?),
        source: path(fields.get(dash + 2)?),
        layers: layers.collect(),
    })
}

/// Spaces and the like are written as `\040`.
fn path(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped.filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// A device number as /sys and mountinfo write it.
fn number(device: u64) -> String {
    format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const MOUNTS: &[u8] = b"\
22 1 0:21 / / rw - overlay overlay rw,lowerdir=/disk:/other,upperdir=/part/up
23 22 8:1 / /disk rw,relatime shared:7 master:1 - ext4 /dev/sda1 rw
24 22 43:1 / /part rw - ext4 /dev/nbd0p1 rw
25 24 0:30 / /part/with\\040space rw - tmpfs tmpfs rw
26 22 7:0 / /image rw - ext4 /dev/loop0 rw
27 22 253:0 / /crypt rw - ext4 /dev/mapper/crypt rw
28 22 43:32 / /ten rw - ext4 /dev/nbd10 rw
";

    #[test]
    fn a_mount_is_parsed_with_and_without_optional_fields() {
        let mounts = mounts(MOUNTS);
        assert_eq!(mounts.len(), 7);
        assert_eq!(mounts[0].layers, ["/disk", "/other", "/part/up"].map(PathBuf::from));
        assert_eq!((&*mounts[1].number, &*mounts[1].source), ("8:1", Path::new("/dev/sda1")));
        assert_eq!(mounts[3].point, Path::new("/part/with space"));
    }

    /// A /sys in which nbd0 has a partition, loop0 is a file on it, and dm-0 is made of loop0.
    fn sys() -> PathBuf {
        let sys = std::env::temp_dir().join(format!("nbd-ctl-deps-{}", std::process::id()));
        for (number, place) in [
            ("8:1", "block/sda/sda1"),
            ("43:1", "block/nbd0/nbd0p1"),
            ("43:32", "block/nbd10"),
            ("7:0", "block/loop0"),
            ("253:0", "block/dm-0"),
        ] {
            fs::create_dir_all(sys.join(place)).unwrap();
            fs::create_dir_all(sys.join("dev/block")).unwrap();
            fs::write(sys.join(place).join("dev"), format!("{number}\n")).unwrap();
            symlink(sys.join(place), sys.join("dev/block").join(number)).unwrap();
        }
        fs::create_dir_all(sys.join("block/loop0/loop")).unwrap();
        fs::write(sys.join("block/loop0/loop/backing_file"), "/part/image\n").unwrap();
        fs::create_dir_all(sys.join("block/dm-0/slaves")).unwrap();
        symlink(sys.join("block/loop0"), sys.join("block/dm-0/slaves/loop0")).unwrap();
        sys
    }

    #[test]
    fn a_file_needs_all_that_is_below_it() {
        let deps = StorageDeps { mounts: mounts(MOUNTS), sys: sys() };
        let on = |path| deps.needs(Device(0), Path::new(path));
        let found = ["/part/file", "/image/file", "/crypt/file", "/file"].map(on);
        let not_found = ["/disk/file", "/part/with space/file", "/ten/file", "relative"].map(on);
        fs::remove_dir_all(&deps.sys).unwrap();
        assert_eq!(found, [true; 4]);
        assert_eq!(not_found, [false; 4]);
    }

    #[test]
    fn layers_that_contain_themselves_come_to_an_end() {
        let mounts = mounts(b"1 0 0:9 / / rw - overlay none rw,lowerdir=/a:/b:/c");
        let deps = StorageDeps { mounts, sys: "/sys".into() };
        assert!(!deps.needs(Device(0), Path::new("/file")));
    }
}
