//! A use of a device, and how it is told.

use serde::{Deserialize, Serialize};

/// So many users are told; the caller has to end them all, and looks again then.
pub(crate) const MAX_USERS: usize = 32;

/// One use of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// What completes "nbd0 is …": `mounted on /mnt`, `opened by fio (pid 4711)`.
    pub what: String,
    /// The command that ends it, if there is one.
    pub ends_with: Option<String>,
    /// A process has it open, which may pass: udev looks at each device that changes.
    pub may_pass: bool,
}

impl User {
    pub(crate) fn lasting(what: String, ends_with: Option<String>) -> Self {
        Self { what, ends_with, may_pass: false }
    }
}

/// What a [`scan`](crate::scan) tells while it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// The device is used.
    User(User),
    /// The memory of this process is looked at next, for which the kernel takes a lock of that
    /// process. A scan that does not go on from here waits for it.
    Process {
        /// Its pid.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// Everything has been looked at.
    Complete,
}
