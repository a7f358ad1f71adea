//! A device that can only be taken down.

use std::fmt;

/// A device that can only be taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abandoned {
    /// The backend, if it is alive.
    pub(crate) backend: Option<i32>,
    /// The kernel's device is still there, and the backend serves it.
    pub(crate) connected: bool,
}

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.backend, self.connected) {
            (Some(pid), true) => write!(
                f,
                "its holder and its sitter have died, so it cannot be adopted; its backend (pid {pid}) still serves it"
            ),
            (Some(pid), false) => write!(
                f,
                "its holder and its sitter are gone, and the device with them; its backend (pid {pid}) \
                 is left"
            ),
            (None, _) => write!(f, "its processes have died, and the kernel still has the device"),
        }
    }
}
