//! What udev has to know of a device: its name, and when to keep off.
//!
//! udev watches block devices: whenever somebody has closed one after writing, it opens it to see
//! what is on it now. Of a device that is being taken away nobody shall hold it open, so the rules
//! (`packaging/59-nbd-ctl.rules`) read a file of ours that says so.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::holder::Holder;
use crate::kernel::errand::Errand;
use crate::system::Process;

const RULES: &str = "udev/rules.d/59-nbd-ctl.rules";
const FOLDERS: [&str; 4] = ["/etc", "/run", "/usr/lib", "/lib"];

impl Holder {
    /// Writes the name down. Before the driver knows of the device, so that its first event finds
    /// it.
    pub(crate) fn tell_udev_name(&self) {
        self.write_properties(false);
    }

    /// Has udev stop watching the device, or watch it again. `limit` is how long that may take.
    pub(crate) fn tell_udev_leaving(&mut self, leaving: bool, limit: Duration) {
        self.write_properties(leaving);
        if !runs() || !FOLDERS.iter().any(|folder| Path::new(folder).join(RULES).exists()) {
            return;
        }
        if self.device.announce_change().is_ok() {
            self.settle_udev(limit);
        }
    }

    fn write_properties(&self, leaving: bool) {
        let name = self.settings.name.as_deref();
        let written = self.registry.write_properties(self.device.index, name, leaving);
        if let Err(error) = written {
            self.warn(&format!("cannot write down what udev should know: {error}"));
        }
    }

    /// Waits until udev has dealt with all events; false if it takes longer than `limit`.
    pub(crate) fn settle_udev(&mut self, limit: Duration) -> bool {
        if !runs() {
            return true;
        }
        let command = Command::new("udevadm")
            .args(["settle", &format!("--timeout={}", limit.as_secs())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let process = command.and_then(|child| Process::open(child.id().cast_signed()));
        // Where udevadm is missing there is nothing to wait with.
        let errand = process.map(Errand::program);
        errand.is_err() || self.run_errand(errand, limit + Duration::from_secs(1)) == Some(0)
    }
}

fn runs() -> bool {
    fs::exists("/run/udev/control").unwrap_or(false)
}
