//! Device-mapper devices that are gone at the end of their test.

use std::path::{Path, PathBuf};

use crate::command::{run, start};
use crate::wait::EVENT_TIMEOUT;

/// A linear mapping of the beginning of a device.
#[derive(Debug)]
pub struct Mapping {
    name: String,
    exists: bool,
}

impl Mapping {
    /// Makes one of so many bytes; the driver is loaded if need be. `uuid` tells which tool made it.
    #[track_caller]
    #[must_use]
    pub fn on(device: &Path, bytes: u64, name: &str, uuid: &str) -> Self {
        if !Path::new("/dev/mapper/control").exists() {
            run("modprobe", ["dm-mod"]).succeeds();
        }
        let table = format!("0 {} linear {} 0", bytes / 512, device.display());
        run("dmsetup", ["create", name, "--uuid", uuid, "--table", &table]).succeeds();
        // Where there is no udev to do it.
        run("dmsetup", ["mknodes", name]).succeeds();
        Self { name: name.into(), exists: true }
    }

    /// Like `/dev/mapper/NAME`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Takes it away.
    #[track_caller]
    pub fn remove(mut self) {
        self.exists = false;
        run("dmsetup", ["remove", "--retry", &self.name]).succeeds();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.exists {
            drop(start("dmsetup", ["remove", "--force", &self.name]).finish(EVENT_TIMEOUT));
        }
    }
}
