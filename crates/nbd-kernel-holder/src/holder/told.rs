//! What operators are told, and what that is made of.

use std::io;
use std::time::Instant;

use nbd_control::control::Failure;
use nbd_control::history::History;
use nbd_control::status::TotalsStatus;

use super::ages::Ages;
use super::outage::{Complaints, Outage};
use crate::ending::Ending;
use crate::kernel::sitter::SetupError;

/// What operators are told, and what that is made of.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) history: History,
    pub(crate) complaints: Complaints,
    pub(crate) outage: Option<Outage>,
    pub(crate) owner_ending: Option<OwnerEnding>,
    pub(crate) ages: Ages,
    pub(crate) begun: Option<Instant>,
    pub(crate) closing: Closing,
    /// Requests that were answered with EIO by the last order.
    pub(crate) failed_requests: u64,
    pub(crate) errors_before: u64,
    pub(crate) failures: Failures,
}

/// Why what was wanted last did not come about.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    pub(crate) backend: String,
    pub(crate) device: Option<String>,
    pub(crate) setup: SetupFailure,
    /// Nothing if it was the operator who wanted no more.
    pub(crate) attach: Option<Failure>,
    pub(crate) save: Option<io::Error>,
    pub(crate) upgrade: String,
}

/// Why a device could not be set up.
#[derive(Debug, Default)]
pub(crate) struct SetupFailure {
    pub(crate) refused: Option<SetupError>,
    /// What failed before the driver was asked.
    pub(crate) text: String,
}

/// The counts of a device that is taken down: the ledger's, which is let go of.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    pub(crate) totals: TotalsStatus,
    /// Requests that are failed by that.
    pub(crate) given_up: usize,
    pub(crate) summary: String,
}

/// How the last owner ended.
#[derive(Debug)]
pub(crate) struct OwnerEnding {
    pub(crate) pid: i32,
    /// What it said before it failed, or why it ended.
    pub(crate) reason: String,
    pub(crate) ending: Ending,
}
