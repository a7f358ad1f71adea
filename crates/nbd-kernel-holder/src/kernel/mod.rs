//! The kernel's side: the only module that knows `/dev/nbdN`, its ioctls, its netlink family and
//! its attributes in /sys.

pub(crate) mod device_users;
mod fs_probe;
pub(crate) mod helper_process;
mod ioctl;
pub(crate) mod limits;
mod log_valve;
mod netlink;
pub(crate) mod sitter;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// `io_timeout` while a device is attached, in milliseconds: 24 days. The driver complains of a
/// request at every tick of it, and with several sockets it even closes the one that it waits
/// for; a backend may sit at a breakpoint for a day.
const IO_TIMEOUT: u64 = i32::MAX as u64;

/// `io_timeout` of a queue that was never changed: 30 s.
pub(crate) const USUAL_TIMEOUT: u64 = 30_000;

/// An NBD device, attached or not.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) index: u32,
}

/// Why a device cannot be had.
#[derive(Debug, Error)]
pub(crate) enum DeviceError {
    #[error("the nbd driver is not loaded: run `modprobe nbd`")]
    NoDriver,
    #[error(
        "{0} does not exist: the driver was loaded for {1} devices; use a lower one, `--kernel-api netlink`, or `modprobe nbd nbds_max=N` after unloading it"
    )]
    NoDevice(String, usize),
    #[error("{0} is in use already: {1}")]
    Busy(String, String),
    #[error("all {0} NBD devices are in use; `--kernel-api netlink` makes new ones")]
    NoneFree(usize),
}

impl Device {
    pub(crate) fn new(index: u32) -> Self {
        Self { index }
    }

    pub(crate) fn name(&self) -> String {
        format!("nbd{}", self.index)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/nbd{}", self.index))
    }

    fn sys(&self, attribute: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/nbd{}/{attribute}", self.index))
    }

    /// Has the kernel tell udev that the device has changed.
    pub(crate) fn announce_change(&self) -> io::Result<()> {
        fs::write(self.sys("uevent"), "change")
    }

    pub(crate) fn exists(&self) -> bool {
        self.sys("").exists()
    }

    /// Size in bytes that the block layer shows.
    pub(crate) fn size(&self) -> u64 {
        read_number(&self.sys("size")).unwrap_or(0) * 512
    }

    /// The process that set the device up. The attribute comes and goes with the connection; the
    /// process itself may be gone.
    pub(crate) fn setup_pid(&self) -> Option<u64> {
        read_number(&self.sys("pid"))
    }

    /// Who has it, if it is not free.
    pub(crate) fn owner(&self) -> Option<String> {
        if let Some(pid) = self.setup_pid() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("process {pid} ({}) has set it up", name.trim()));
        }
        (self.size() != 0).then(|| "it has a size".into())
    }

    /// Whether it is set up and has a size.
    pub(crate) fn is_connected(&self, size: u64) -> bool {
        self.setup_pid().is_some() && self.size() == size
    }

    /// Whether nothing of a connection is left.
    pub(crate) fn is_clear(&self) -> bool {
        !self.exists() || (self.setup_pid().is_none() && self.size() == 0)
    }

    /// Requests that the block layer waits for, those included that the driver has not sent yet.
    pub(crate) fn waiting(&self) -> u64 {
        let text = fs::read_to_string(self.sys("inflight")).unwrap_or_default();
        text.split_ascii_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum()
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How many devices the driver has.
pub(crate) fn device_count() -> usize {
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    names.filter(|entry| index_of(&entry.file_name().to_string_lossy()).is_some()).count()
}

fn index_of(name: &str) -> Option<u32> {
    name.strip_prefix("nbd")?.parse().ok()
}

/// Fails unless the driver is there.
pub(crate) fn check_driver() -> Result<(), DeviceError> {
    match Path::new("/sys/module/nbd").exists() || device_count() > 0 {
        true => Ok(()),
        false => Err(DeviceError::NoDriver),
    }
}
