//! What is known of a device, as it is listed.

use nbd_control::backend::ExportInfo;
use nbd_control::registry::Registry;
use nbd_control::status::{BackendState, Status};
use nbd_device_users::lasting_users;
use serde::Serialize;

use crate::device::Device;
use crate::error::Error;
use crate::text::style::CellStyle;

/// A device in a list. As JSON, an attached one is its [`Status`] and the member `entry`.
#[derive(Debug, Serialize)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub(crate) enum Listed {
    Attached(Box<Status>),
    /// It works, but its holder is gone.
    Orphaned(Box<Orphan>),
    /// Its holder no longer listens.
    Ending {
        device: String,
        holder_pid: i32,
    },
    /// Holder and sitter are gone, and something is left.
    Abandoned {
        device: String,
        backend_pid: Option<i32>,
        /// Whether the kernel's device is still there.
        connected: bool,
        detail: String,
    },
    /// All its processes are gone.
    Stale {
        device: String,
        detail: String,
    },
    /// Nothing could be learnt.
    Unreachable {
        device: String,
        detail: String,
        /// Because this user may not ask.
        forbidden: bool,
    },
}

/// A device as it is listed, and what its holder does not tell.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    #[serde(flatten)]
    pub(crate) listed: Listed,
    /// Its name, given at attach.
    pub(crate) name: Option<String>,
    /// What completes "nbd0 is …": `mounted on /mnt`. Open files do not count, as they come and go.
    pub(crate) used_by: Vec<String>,
}

impl Entry {
    pub(crate) fn new(registry: &Registry, device: Device, listed: Listed) -> Self {
        let users = lasting_users(&device.to_string()).into_iter();
        let used_by = users.map(|user| user.what).collect();
        Self { listed, name: registry.name(device.0), used_by }
    }
}

/// What is known of a device without holder, which is what its holder wrote down.
#[derive(Debug, Serialize)]
pub(crate) struct Orphan {
    pub(crate) device: String,
    pub(crate) holder_pid: i32,
    pub(crate) sitter_pid: i32,
    /// The backend, if it is alive.
    pub(crate) backend_pid: Option<i32>,
    pub(crate) description: String,
    pub(crate) export: ExportInfo,
    pub(crate) lanes: u32,
    pub(crate) restarts: u64,
}

impl Listed {
    pub(crate) fn device(&self) -> &str {
        match self {
            Self::Attached(status) => &status.device,
            Self::Orphaned(orphan) => &orphan.device,
            Self::Ending { device, .. }
            | Self::Abandoned { device, .. }
            | Self::Stale { device, .. }
            | Self::Unreachable { device, .. } => device,
        }
    }

    pub(crate) fn unreachable(device: Device, error: &Error) -> Self {
        Self::Unreachable {
            device: device.to_string(),
            detail: error.chain().unwrap_or_default(),
            forbidden: matches!(error, Error::Forbidden { .. }),
        }
    }

    /// What it is doing, in a word.
    pub(crate) fn state(&self) -> (&'static str, CellStyle) {
        match self {
            Self::Attached(status) => {
                let state = status.backend.state;
                (state_name(state), state_style(state))
            }
            Self::Orphaned(_) => ("orphaned", CellStyle::Odd),
            Self::Ending { .. } => ("ending", CellStyle::Odd),
            Self::Abandoned { .. } => ("abandoned", CellStyle::Bad),
            Self::Stale { .. } => ("stale", CellStyle::Bad),
            Self::Unreachable { forbidden: true, .. } => ("no permission", CellStyle::Bad),
            Self::Unreachable { .. } => ("unreachable", CellStyle::Bad),
        }
    }
}

pub(crate) const fn state_name(state: BackendState) -> &'static str {
    match state {
        BackendState::Starting => "starting",
        BackendState::Running => "running",
        BackendState::Stopped => "stopped",
        BackendState::Restarting => "restarting",
        BackendState::Waiting => "waiting",
        BackendState::Down => "down",
        BackendState::Paused => "paused",
        BackendState::Failing => "failing",
        BackendState::Failed => "failed",
    }
}

pub(crate) const fn state_style(state: BackendState) -> CellStyle {
    match state {
        BackendState::Running => CellStyle::Good,
        BackendState::Starting
        | BackendState::Restarting
        | BackendState::Waiting
        | BackendState::Paused => CellStyle::Odd,
        BackendState::Stopped
        | BackendState::Down
        | BackendState::Failing
        | BackendState::Failed => CellStyle::Bad,
    }
}
