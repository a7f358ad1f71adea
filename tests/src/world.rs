//! All that an attach may change on a machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nbd_control::registry::DEFAULT_DIRECTORY;

use crate::process::ours;
use crate::wait::{LONG, patiently};

/// The registry, the driver's devices and our processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    registry: Vec<String>,
    /// Size, whether somebody has set it up, and `io_timeout`.
    devices: BTreeMap<String, (u64, bool, u64)>,
    processes: Vec<(i32, String)>,
}

impl World {
    /// As it is now.
    #[must_use]
    pub fn now() -> Self {
        let mut registry = Vec::new();
        list(Path::new(DEFAULT_DIRECTORY), &mut registry);
        let names = fs::read_dir("/sys/block").expect("/sys/block").flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let devices = names
            .filter(|name| name.starts_with("nbd"))
            .map(|name| {
                let device = (
                    number(&name, "size").unwrap_or(0) * 512,
                    number(&name, "pid").is_some(),
                    number(&name, "queue/io_timeout").unwrap_or(0),
                );
                (name, device)
            })
            .collect();
        Self { registry, devices, processes: ours() }
    }

    /// Panics unless it is as before.
    #[track_caller]
    pub fn is_unchanged(&self) {
        // Processes may take a moment to be gone after nbd-ctl has returned.
        let deadline = Instant::now() + patiently(LONG);
        loop {
            let now = Self::now();
            if now == *self {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "something was left behind:\nbefore {self:?}\nnow {now:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Panics if anything is attached or runs.
    #[track_caller]
    pub fn is_empty(&self) {
        let free = |(size, connected, _): &(u64, bool, u64)| *size == 0 && !connected;
        assert!(
            self.registry.is_empty()
                && self.processes.is_empty()
                && self.devices.values().all(free),
            "a test before this one has left something behind: {self:?}"
        );
    }
}

/// An attribute of a device in /sys.
#[must_use]
pub fn number(device: &str, attribute: &str) -> Option<u64> {
    let path = format!("/sys/block/{device}/{attribute}");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Everything but the lock, which stays for ever, and the logs of devices that are gone.
fn list(directory: &Path, found: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !path.ends_with("lock"))
        .filter(|path| !path.to_string_lossy().ends_with(".log.last"))
        .collect();
    entries.sort();
    for path in entries {
        found.push(path.display().to_string());
        list(&path, found);
    }
}
