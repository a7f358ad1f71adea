//! Why an export cannot be served.

use std::io;
use std::path::PathBuf;

use nbd_backend::JoinError;
use nbd_client::{ChangeError, ClientError};
use nbd_nbdkit::PluginError;
use nbd_rbd::RbdError;
use thiserror::Error;

use crate::layers::cow::CowError;
use crate::layers::partition::{PartitionError, Range};
use crate::layers::write_log::LogError;
use crate::size::Size;
use crate::storage::file_reuse::FileReuseError;
use crate::storage::lock::LockError;
use crate::storage::mem::MemoryError;
use crate::storage::probe::ProbeError;

/// Why something cannot be served.
#[derive(Debug, Error)]
pub(crate) enum ExportError {
    #[error("{}", .path.display())]
    Probe { path: PathBuf, source: ProbeError },
    #[error("{}", .path.display())]
    FileReuse { path: PathBuf, source: FileReuseError },
    #[error("{object}")]
    Memory { object: String, source: MemoryError },
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Subrange(#[from] SubrangeError),
    #[error("{}", .path.display())]
    Cow { path: PathBuf, source: CowError },
    #[error("{}", .path.display())]
    Record { path: PathBuf, source: RecordError },
    #[error("{device}: serves {was} and not {now} since it was attached: detach it first")]
    OtherKind { device: String, was: String, now: String },
    #[error("{device}: cannot take over the {name} that the predecessor left")]
    Duplicate { device: String, name: String, source: io::Error },
    #[error("{device}: cannot store the {name} with the holder")]
    Keep { device: String, name: String, source: JoinError },
    #[error("cannot write the table of settings")]
    Settings(#[source] io::Error),
    #[error("nbdkit:{plugin}")]
    Nbdkit { plugin: String, source: PluginError },
    #[error("nbdkit:{plugin}")]
    NbdkitChanged { plugin: String, source: ChangeError },
    #[error("{image}")]
    Rbd { image: String, source: RbdError },
    #[error("{image}")]
    RbdChanged { image: String, source: ChangeError },
    #[error("{image}: cannot make a place for the address of this client")]
    RbdRecord { image: String, source: io::Error },
    #[error(
        "{0}: keeps what is written in the memory of its process, and a device must survive that: use \
         mem:SIZE for memory, or readonly@{0} to serve it as it is now"
    )]
    LosesWrites(String),
    #[error("there are too many layers: leave some of them out")]
    TooManyLayers,
}

/// Why a server cannot be used.
#[derive(Debug, Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot make the connection store")]
    Make(#[source] io::Error),
    #[error("cannot take over the connections that the predecessor left")]
    Inherit(#[source] io::Error),
    #[error(
        "{0}: partition, offset and cow read what is below them before they serve it, and nbd-serve connects to another server only when it serves: let that server choose the part"
    )]
    Reshaped(String),
}

/// Why a part of an export cannot be served.
#[derive(Debug, Error)]
pub(crate) enum SubrangeError {
    #[error("partition {number}")]
    Partition { number: u32, source: PartitionError },
    #[error("offset {}: is not within the {} of what is below it", Size(*.start), Size(*.size))]
    Outside { start: u64, size: u64 },
    #[error(
        "{what} {}: is not a multiple of the block size {block} of what is below it", Size(*.value)
    )]
    Unaligned { what: &'static str, value: u64, block: u32 },
    #[error(
        "is not the part that was attached, which is {} at {}: detach the device first",
        Size(.0.length), Size(.0.start)
    )]
    OtherRange(Range),
    #[error("cannot note or read which part is served")]
    Note(#[source] io::Error),
}

/// Why nothing can be recorded.
#[derive(Debug, Error)]
pub(crate) enum RecordError {
    #[error("cannot be opened or made")]
    Open(#[source] io::Error),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("is not the log of the device: detach it first, or put the log back in its place")]
    OtherFile,
}
