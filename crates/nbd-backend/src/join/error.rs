//! Why a backend does not get the lanes, and how the holder is told.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nbd_control::ChannelError;
use nbd_control::backend::{FromBackend, HOLDER_FD};
use nbd_record::CaptureError;
use thiserror::Error;

/// The environment variable by which a backend started by hand names its device.
pub const JOIN_VARIABLE: &str = "NBD_JOIN";
/// The environment variable by which such a backend has the holder kill the one that serves the
/// device, like `NBD_TAKEOVER=1`. Empty is as good as unset.
pub const TAKEOVER_VARIABLE: &str = "NBD_TAKEOVER";

/// How long the holder may take for an acknowledgement.
pub(crate) const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a backend did not get the lanes.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The environment names no device.
    #[error(
        "no device to serve: start this program with `nbd-ctl attach -- PROGRAM`, or set {JOIN_VARIABLE}=nbd0 to serve a device that waits for a backend, and {TAKEOVER_VARIABLE}=1 to replace a living one"
    )]
    NoEndpoint,
    /// The inherited descriptor is not open.
    #[error("{HOLDER_FD}={0} does not name an open socket")]
    BadDescriptor(String),
    /// Not the name of a device.
    #[error("{0} is not the name of an NBD device (like nbd0)")]
    BadName(String),
    /// No holder listens on the socket.
    #[error("cannot reach the holder at {path} (is the device attached? see `nbd-ctl list`)")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The capture cannot be replayed.
    #[error("{}", .path.display())]
    Recording {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CaptureError,
    },
    /// The holder refused.
    #[error("{0}")]
    Refused(String),
    /// The connection to the holder failed.
    #[error("cannot talk to the holder")]
    Channel(#[from] ChannelError),
    /// The holder broke the protocol.
    #[error("the holder broke the protocol: {0}")]
    Protocol(&'static str),
}

pub(crate) fn failure(reason: &str, damaged: bool) -> FromBackend {
    FromBackend::Failed { reason: reason.into(), damaged }
}
