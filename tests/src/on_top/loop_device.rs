//! Loop devices that are gone at the end of their test.

use std::path::{Path, PathBuf};

use crate::command::{run, start};
use crate::wait::{EVENT_TIMEOUT, wait_until};

/// A loop device.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    is_set_up: bool,
}

impl LoopDevice {
    /// Sets one up on a file or a device; the driver is loaded if need be.
    #[track_caller]
    #[must_use]
    pub fn on(backing: &Path) -> Self {
        load_driver();
        let options = ["--find".as_ref(), "--show".as_ref(), backing.as_os_str()];
        let path = run("losetup", options).succeeds().stdout;
        Self { path: PathBuf::from(path.trim_end()), is_set_up: true }
    }

    /// Like `/dev/loop0`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Like `loop0`.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Takes it away.
    #[track_caller]
    pub fn remove(mut self) {
        self.is_set_up = false;
        run("losetup", ["-d".as_ref(), self.path.as_os_str()]).succeeds();
        // The driver does it with the last close, which may be udev's.
        let backing = format!("/sys/block/{}/loop/backing_file", self.name());
        wait_until("the end of the loop device", EVENT_TIMEOUT, || !Path::new(&backing).exists());
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if self.is_set_up {
            drop(start("losetup", ["-d".as_ref(), self.path.as_os_str()]).finish(EVENT_TIMEOUT));
        }
    }
}

/// Panics if the kernel has no loop devices.
#[track_caller]
pub fn load_driver() {
    if !Path::new("/dev/loop-control").exists() {
        run("modprobe", ["loop"]).succeeds();
    }
    wait_until("/dev/loop-control", EVENT_TIMEOUT, || Path::new("/dev/loop-control").exists());
}
