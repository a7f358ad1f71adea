//! Mounted file systems that are unmounted at the end of their test.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{run, start};

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    place: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts a device on a directory that it makes if there is none.
    #[track_caller]
    #[must_use]
    pub fn new(device: &Path, place: &Path) -> Self {
        Self::with(&[device.as_os_str()], place)
    }

    /// Mounts some memory, with options like `size=1M,ro`.
    #[track_caller]
    #[must_use]
    pub fn of_memory(options: &str, place: &Path) -> Self {
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs"].map(OsStr::new);
        Self::with(&arguments, place)
    }

    /// Mounts a file system of the kernel's own that has no device, like cgroup2.
    #[track_caller]
    #[must_use]
    pub fn of_kind(kind: &str, place: &Path) -> Self {
        Self::with(&["-t", kind, kind].map(OsStr::new), place)
    }

    #[track_caller]
    fn with(arguments: &[&OsStr], place: &Path) -> Self {
        fs::create_dir_all(place).expect("a directory to mount on");
        run("mount", arguments.iter().copied().chain([place.as_os_str()])).succeeds();
        Self { place: place.into(), mounted: true }
    }

    /// Unmounts.
    #[track_caller]
    pub fn unmount(mut self) {
        self.mounted = false;
        run("umount", [&self.place]).succeeds();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        // Not for ever: the device may be stuck. What is detached lazily goes with its last user.
        let mut umount = start("umount", ["--lazy".as_ref(), self.place.as_os_str()]);
        for _ in 0..50 {
            if !umount.is_running() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
