//! What an attach changes on a machine: the registry, the driver's devices and our processes. A test
//! takes it before and compares it after, to see that nothing has been left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nbd_control::registry::DEFAULT_DIRECTORY;

use crate::process::{is_helper, ours};
use crate::sysfs::block_attribute;
use crate::wait::{EVENT_TIMEOUT, scaled_timeout};

/// What the driver tells of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DeviceState {
    bytes: u64,
    is_connected: bool,
    io_timeout_ms: u64,
}

/// The registry, the driver's devices and our processes, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineState {
    registry: Vec<String>,
    devices: BTreeMap<String, DeviceState>,
    /// Without the helpers of holders, which come and go.
    processes: Vec<(i32, String)>,
}

impl MachineState {
    /// What it is now.
    #[must_use]
    pub fn now() -> Self {
        let mut registry = Vec::new();
        list_files(Path::new(DEFAULT_DIRECTORY), &mut registry);
        let names = fs::read_dir("/sys/block").expect("/sys/block").flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let devices = names
            .filter(|name| name.starts_with("nbd"))
            .map(|name| {
                let device = DeviceState {
                    bytes: block_attribute(&name, "size").unwrap_or(0) * 512,
                    is_connected: block_attribute(&name, "pid").is_some(),
                    io_timeout_ms: block_attribute(&name, "queue/io_timeout").unwrap_or(0),
                };
                (name, device)
            })
            .collect();
        let processes = ours().into_iter().filter(|(pid, _)| !is_helper(*pid)).collect();
        Self { registry, devices, processes }
    }

    /// Panics unless the machine comes back to this state.
    #[track_caller]
    pub fn assert_unchanged(&self) {
        // Processes may take a moment to be gone after nbd-ctl has returned.
        let deadline = Instant::now() + scaled_timeout(EVENT_TIMEOUT);
        loop {
            let now = Self::now();
            let helpers: Vec<_> = ours().into_iter().filter(|(pid, _)| is_helper(*pid)).collect();
            if now == *self && helpers.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "something was left behind:\nbefore {self:?}\nnow {now:?}\nhelpers {helpers:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Panics if anything is attached or runs.
    #[track_caller]
    pub fn assert_nothing_attached(&self) {
        let free = |device: &DeviceState| device.bytes == 0 && !device.is_connected;
        assert!(
            self.registry.is_empty()
                && self.processes.is_empty()
                && self.devices.values().all(free),
            "a test before this one has left something behind: {self:?}"
        );
    }
}

/// Everything but the lock, which stays for ever, and the logs of devices that are gone.
fn list_files(directory: &Path, found: &mut Vec<String>) {
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
        list_files(&path, found);
    }
}
