//! What a backend and its holder say to each other. `docs/reference/backend-protocol.md` has the bytes.
//!
//! ```text
//! backend                      holder
//!    │ Examine, if there is an owner ► │   what is stored, to look at before the owner is killed
//!    │ ◄────────────────── Stored │
//!    │ Hello ───────────────────► │   checks the export, waits until the predecessor is dead
//!    │ ◄─────────── Grant or Refusal │   ledger, lanes, keepsakes as descriptors
//!    │ Keep (fd) ───────────────► │   any number of times
//!    │ ◄──────────────────── Kept │
//!    │ Poisoned ────────────────► │   for each request that is given up
//!    │ Ready or Failed ─────────► │   recovery is done; requests are being answered
//! ```

use serde::{Deserialize, Serialize};

/// The environment variable that names the descriptor of a started backend's connection.
pub const HOLDER_FD: &str = "NBD_HOLDER_FD";

/// The properties of an export that the kernel is told, and that every successor must repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportInfo {
    /// Size in bytes: a positive multiple of `block_size`.
    pub size: u64,
    /// Logical block size in bytes: a power of two, 512 to 4096.
    pub block_size: u32,
    /// NBD transmission flags.
    pub flags: u16,
}

/// The environment variable that tells a started successor the export that was attached, as
/// `SIZE:BLOCK_SIZE:FLAGS` in decimal; see [`ExportInfo::to_variable`]. Its storage may have grown
/// since then.
pub const EXPORT_VARIABLE: &str = "NBD_EXPORT";

/// The environment variable that asks a started successor for its present size, be it larger than
/// that in [`EXPORT_VARIABLE`]: the device shall grow.
pub const GROW_VARIABLE: &str = "NBD_GROW";

/// The environment variable that tells a program that is started while another backend serves the
/// device that it may send [`FromBackend::Examine`] before its Hello.
pub const EXAMINE_VARIABLE: &str = "NBD_EXAMINE";

impl ExportInfo {
    /// The value of [`EXPORT_VARIABLE`].
    #[must_use]
    pub fn to_variable(&self) -> String {
        format!("{}:{}:{}", self.size, self.block_size, self.flags)
    }

    /// Reads the value of [`EXPORT_VARIABLE`].
    #[must_use]
    pub fn from_variable(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let export = Self {
            size: parts.next()?.parse().ok()?,
            block_size: parts.next()?.parse().ok()?,
            flags: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(export)
    }
}

/// From a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromBackend {
    /// Asks for the lanes; always the first message.
    Hello(Hello),
    /// Deposits the one descriptor of this frame with the holder under a name, so that it
    /// outlives the backend. A name that is taken is replaced.
    Keep {
        /// At most 32 bytes.
        name: String,
    },
    /// Recovery is done and the lanes are being served.
    Ready {
        /// Requests that the predecessor had taken and not answered.
        replayed: u32,
    },
    /// The lanes cannot be served. The backend exits after this.
    Failed {
        /// A sentence for the operator.
        reason: String,
        /// The ledger itself is damaged, so that no successor can do better.
        damaged: bool,
    },
    /// A request that crashed too many backends was answered with EIO. Said before `Ready`.
    Poisoned(Poison),
    /// Before the Hello: asks for what is stored, to see whether it fits. So a backend that could
    /// not serve the device says so while its predecessor lives.
    Examine,
    /// The owner uses lanes and ledger no more, executes no request of the device, and lives on,
    /// because it serves other devices. The holder treats that like the end of its process.
    Left,
}

/// A request that crashes backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poison {
    /// Its lane.
    pub lane: u32,
    /// NBD command type.
    pub command: u16,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u32,
    /// How many backends it crashed.
    pub crashes: u32,
}

/// A backend introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The ledger layout that the backend knows.
    pub ledger_version: u32,
    /// What it serves, for people: `file:/srv/disk.img`.
    pub description: String,
    /// What it serves. Must equal that of an attached device, but for the size, which may be
    /// larger: the device keeps its own.
    pub export: ExportInfo,
    /// Whether a backend that is alive shall be killed to make room.
    pub takeover: bool,
}

/// From the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromHolder {
    /// The lanes are the backend's. The descriptors are the ledger, the lanes' server ends in
    /// order, and the keepsakes in the order of `keepsakes`.
    Grant(Grant),
    /// Nothing for you.
    Refusal {
        /// A sentence for the operator.
        reason: String,
    },
    /// A keepsake is safe.
    Kept,
    /// What predecessors deposited; the descriptors are in the order of the names. They are to be
    /// looked at and not to be used: their owner lives.
    Stored {
        /// Name of the device, like `nbd0`.
        device: String,
        /// Whether the device exists, so that nothing can be deposited any more.
        attached: bool,
        /// The names.
        names: Vec<String>,
    },
}

/// What a backend needs to know beside its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Name of the device, like `nbd0`.
    pub device: String,
    /// Number of lanes.
    pub lanes: u32,
    /// Bytes of a receive ring.
    pub ring: u64,
    /// Bytes of a transmit area.
    pub transmit: u64,
    /// Longest payload in bytes.
    pub max_payload: u32,
    /// Names of the keepsakes.
    pub keepsakes: Vec<String>,
    /// Whether the predecessor crashed, by a signal that a fault of its own raises or with an exit
    /// status other than 0. One that was killed did not crash.
    pub crashed: bool,
    /// A request that has crashed so many backends is answered with EIO; 0 is never.
    pub poison_limit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_survives_the_environment_and_garbage_does_not() {
        let export = ExportInfo { size: 1 << 40, block_size: 512, flags: 0x16d };
        assert_eq!(ExportInfo::from_variable(&export.to_variable()), Some(export));
        for bad in ["", "1", "1:512", "1:512:3:4", "x:512:3", "1:512:65536"] {
            assert_eq!(ExportInfo::from_variable(bad), None, "{bad}");
        }
    }
}
