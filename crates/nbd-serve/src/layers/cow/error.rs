//! Why a diff cannot be used.

use std::io;

use thiserror::Error;

use crate::size::Size;
use crate::storage::lock::LockError;

/// Why a diff cannot be used.
#[derive(Debug, Error)]
pub(crate) enum CowError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    #[error("cannot be made")]
    Make(#[source] io::Error),
    #[error("cannot be read or written")]
    Access(#[source] io::Error),
    #[error(
        "is not a diff of nbd-serve, and is left unchanged: write cow:BASE+DIFF, with the diff last"
    )]
    Foreign,
    #[error("was made by a newer version of this program")]
    Newer,
    #[error("does not exist, so there is nothing to commit or discard")]
    Missing,
    #[error("belongs to a base of {}, and this base has only {}: give the right base", Size(*.diff), Size(*.base))]
    SmallBase { diff: u64, base: u64 },
    #[error("is not the diff that was attached: detach the device first, or put that one back")]
    OtherFile,
    #[error("the base cannot be written to")]
    ReadOnlyBase,
    #[error("cannot tell whether the machine was restarted (/proc/sys/kernel/random/boot_id)")]
    Boot(#[source] io::Error),
}
