//! What is left of a device that has lost its holder: processes, and what the kernel still has.
//!
//! Only `/proc` and `/sys` are read, so nothing that is stuck can make the caller stuck.

use std::fs;
use std::path::PathBuf;

use crate::process::{ProcessId, parent};
use crate::registry::State;

/// What is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The sitter, if it is alive: then another holder can adopt the device.
    pub sitter: Option<ProcessId>,
    /// The backend that was granted the lanes, if it is alive.
    pub backend: Option<ProcessId>,
    /// The kernel's device is still the one that this sitter has connected.
    pub connected: bool,
}

impl Remains {
    /// Looks. `state` is what the last holder has written down, if that can be read.
    #[must_use]
    pub fn of(index: u32, state: Option<&State>) -> Self {
        let alive = |id: &ProcessId| id.is_alive();
        match state {
            Some(state) => Self {
                sitter: Some(state.sitter).filter(alive),
                backend: state.backend.filter(alive),
                connected: setup_pid(index) == Some(state.sitter.pid),
            },
            None => {
                let stray = stray(index);
                let sitter = stray.and_then(ProcessId::of).filter(alive);
                Self { sitter, backend: None, connected: stray.is_some() }
            }
        }
    }

    /// Whether there is nothing but the registry's entry.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.sitter.is_none() && self.backend.is_none() && !self.connected
    }
}

/// The process that has set up a connected device with our sitters' names, if it has no holder any
/// more; it may be dead itself. For devices that no state tells of.
#[must_use]
pub fn stray(index: u32) -> Option<i32> {
    let pid = setup_pid(index)?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // Netlink devices keep the identifier that we have set them up with.
    let identifier = fs::read_to_string(attribute(index, "backend")).unwrap_or_default();
    let ours = comm.trim() == format!("nbd{index}-sitter")
        || (comm.is_empty() && identifier.trim() == format!("nbd{index}"));
    (ours && !has_holder(pid)).then_some(pid)
}

/// Gives the queue of a device that is not connected the timeout back that it had before it was attached, in
/// milliseconds. Best effort: a device that netlink has made may be gone, and the attribute with it.
pub fn restore_timeout(index: u32, milliseconds: u64) {
    // A device of another program has what that program set. Of a connected one the store could wait for
    // requests in flight, as newer kernels freeze the queue for it.
    if setup_pid(index).is_none() {
        let _ = fs::write(attribute(index, "queue/io_timeout"), milliseconds.to_string());
    }
}

/// A sitter is its holder's child, or is traced by a holder that has adopted it.
fn has_holder(sitter: i32) -> bool {
    let is_holder = |pid: Option<i32>| {
        let comm = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        // The kernel keeps 15 bytes of a name.
        comm.is_some_and(|comm| comm.trim() == "nbd-kernel-hold")
    };
    is_holder(parent(sitter)) || is_holder(crate::process::tracer(sitter))
}

/// The process that has set the device up, while it is connected; it may be dead.
fn setup_pid(index: u32) -> Option<i32> {
    fs::read_to_string(attribute(index, "pid")).ok()?.trim().parse().ok()
}

fn attribute(index: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{index}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_device_that_does_not_exist_nothing_is_left() {
        assert_eq!(stray(4_000_000), None);
        assert!(Remains::of(4_000_000, None).is_nothing());
    }
}
