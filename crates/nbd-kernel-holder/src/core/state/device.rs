//! What is known of the device, and what does not change while the holder lives.

use std::time::Duration;

/// What does not change while the holder lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The device is connected over netlink, and its sitter does not sit in an ioctl.
    pub(crate) netlink: bool,
    /// The operator wants this device and no other one.
    pub(crate) given: bool,
    /// It exists before it is connected.
    pub(crate) exists: bool,
    /// How long a backend may take to introduce itself.
    pub(crate) ready_timeout: Option<Duration>,
    /// How long requests may be without a backend before they are answered with EIO.
    pub(crate) loss_limit: Option<Duration>,
}

/// The device, and the driver's side of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// Requests may come, and failures are survived.
    pub(crate) attached: bool,
    pub(crate) failed: Option<Failed>,
    pub(crate) sitter: Sitter,
    /// The driver was told to disconnect, and said that it did.
    pub(crate) disconnected: bool,
    /// It has closed the lanes, which was not our doing.
    pub(crate) dropped: bool,
    /// `queue/io_timeout` is ours.
    pub(crate) silenced: bool,
}

/// Why an attached device only awaits its detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The ledger is damaged, so what is in flight cannot be executed again.
    Damaged,
    /// The driver did not let go of it.
    Stuck,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sitter {
    #[default]
    None,
    Sits,
    Gone,
}
