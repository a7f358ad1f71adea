//! What is known of a device and of those who have to do with it.

use super::above::{Above, Stack};
use super::probe;
use super::process::Process;
use crate::device::Device;
use crate::inspect::listed::Listed;

/// Everything that an explanation is made of.
#[derive(Debug)]
pub(crate) struct Facts {
    /// What its holder tells, or what there is instead of one.
    pub(crate) listed: Listed,
    pub(crate) holder: Option<Process>,
    pub(crate) sitter: Option<Process>,
    pub(crate) backend: Option<Process>,
    /// Processes that use the device and cannot go on.
    pub(crate) waiters: Vec<Process>,
    /// What is stacked on the device, that on top first.
    pub(crate) above: Vec<Above>,
    /// NBD devices that the backend uses as its storage.
    pub(crate) storage: Vec<Device>,
    /// Requests that the block layer waits for: those in the ledger and in the sockets, and those
    /// that the driver could not send yet.
    pub(crate) block_layer: u64,
}

impl Facts {
    /// Looks at everything.
    pub(crate) fn gather(device: Device, listed: Listed) -> Self {
        let (holder, sitter, backend) = match &listed {
            Listed::Attached(status) => {
                (Some(status.holder_pid), Some(status.sitter_pid), status.backend.pid)
            }
            Listed::Orphaned(orphan) => (None, Some(orphan.sitter_pid), orphan.backend_pid),
            Listed::Ending { holder_pid, .. } => (Some(*holder_pid), None, None),
            Listed::Abandoned { backend_pid, .. } => (None, None, *backend_pid),
            Listed::Stale { .. } | Listed::Unreachable { .. } => (None, None, None),
        };
        let ours: Vec<i32> = [holder, sitter, backend].into_iter().flatten().collect();
        let of = |pid: Option<i32>| pid.and_then(probe::process);
        let stack = Stack::of(device);
        Self {
            holder: of(holder),
            sitter: of(sitter),
            backend: of(backend),
            waiters: probe::waiters(&stack, &ours),
            above: stack.above(),
            storage: backend.map(probe::storage).unwrap_or_default(),
            block_layer: probe::block_layer(device),
            listed,
        }
    }
}
