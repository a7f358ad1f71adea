//! Which block devices a file needs: whether a read of it waits for a given device. Found out from /proc
//! and /sys alone, as asking the file itself could be the first to wait.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nbd_device_users::Mount;

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

impl StorageDeps {
    /// Of this process, now.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let mounts = Mount::all_of(std::process::id().cast_signed())?;
        Ok(Self { mounts, sys: "/sys".into() })
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
            || layers(mount).any(|layer| self.file_needs(device, layer, depth))
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
        let backing = PathBuf::from(OsString::from_vec(backing.trim_ascii_end().into()));
        if backing.is_absolute() && self.file_needs(device, &backing, depth) {
            return true;
        }
        let slaves = fs::read_dir(whole.join("slaves")).into_iter().flatten().flatten();
        slaves
            .filter_map(|slave| fs::read_to_string(slave.path().join("dev")).ok())
            .any(|number| self.block_needs(device, number.trim_ascii_end(), depth))
    }
}

/// Directories that an overlay is made of.
fn layers(mount: &Mount) -> impl Iterator<Item = &Path> {
    let options = mount.options.iter();
    let values = options.filter(|(name, _)| matches!(&**name, "lowerdir" | "upperdir"));
    values.flat_map(|(_, value)| {
        value
            .as_os_str()
            .as_bytes()
            .split(|&byte| byte == b':')
            .map(OsStr::from_bytes)
            .map(Path::new)
    })
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
        let deps = StorageDeps { mounts: Mount::parse(MOUNTS), sys: sys() };
        let on = |path| deps.needs(Device(0), Path::new(path));
        let found = ["/part/file", "/image/file", "/crypt/file", "/file"].map(on);
        let not_found = ["/disk/file", "/part/with space/file", "/ten/file", "relative"].map(on);
        fs::remove_dir_all(&deps.sys).unwrap();
        assert_eq!(found, [true; 4]);
        assert_eq!(not_found, [false; 4]);
    }

    #[test]
    fn layers_that_contain_themselves_come_to_an_end() {
        let mounts = Mount::parse(b"1 0 0:9 / / rw - overlay none rw,lowerdir=/a:/b:/c");
        let deps = StorageDeps { mounts, sys: "/sys".into() };
        assert!(!deps.needs(Device(0), Path::new("/file")));
    }
}
