//! What udev has to know of a device: its name, and when to keep off.
//!
//! udev watches block devices: whenever a process has closed one after writing, it opens it to see
//! what is on it now. Of a device that is being taken away no process shall hold it open, so the rules
//! (`packaging/59-nbd-ctl.rules`) read a file of ours that says so.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nbd_control::service;
use nbd_control::system_error::explain;
use nix::unistd::Pid;

use crate::holder::Holder;
use crate::system::{Process, open_child};

const RULES: &str = "udev/rules.d/59-nbd-ctl.rules";
const FOLDERS: [&str; 4] = ["/etc", "/run", "/usr/lib", "/lib"];
/// How long udev may take to look away.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

impl Holder {
    /// Writes the name down. Before the driver knows of the device, so that its first event finds
    /// it.
    pub(crate) fn tell_udev_name(&self) {
        self.write_properties(false);
    }

    /// Has udev stop watching the device, or watch it again; the process that waits for that, if there is
    /// something to wait for.
    pub(crate) fn tell_udev_leaving(&self, leaving: bool) -> io::Result<Option<Process>> {
        self.write_properties(leaving);
        let has_rules = || FOLDERS.iter().any(|folder| Path::new(folder).join(RULES).exists());
        if !runs() || !has_rules() || self.device.announce_change().is_err() {
            return Ok(None);
        }
        Ok(settle(LEAVE_TIMEOUT))
    }

    fn write_properties(&self, leaving: bool) {
        let name = self.settings.name.as_deref();
        let written = self.place.registry.write_properties(self.device.index, name, leaving);
        if let Err(error) = written {
            self.warn(&format!("cannot write the file that udev reads: {}", explain(&error)));
        }
    }
}

/// Starts what waits until udev has dealt with all events, for so long at most. Where udev does not run,
/// or udevadm is missing, there is nothing to wait for.
pub(crate) fn settle(limit: Duration) -> Option<Process> {
    if !runs() {
        return None;
    }
    let mut command = Command::new("udevadm");
    service::withhold(&mut command);
    let child = command
        .args(["settle", &format!("--timeout={}", limit.as_secs())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    child.and_then(|child| open_child(Pid::from_raw(child.id().cast_signed()))).ok()
}

fn runs() -> bool {
    fs::exists("/run/udev/control").unwrap_or(false)
}
