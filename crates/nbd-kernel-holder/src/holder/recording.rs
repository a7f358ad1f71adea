//! What requests are written to.

use std::os::fd::OwnedFd;
use std::path::Path;

use nbd_record::CaptureError;

/// What requests are written to.
#[derive(Debug)]
pub(crate) struct Recording {
    /// Absolute, for a holder that adopts the device.
    pub(crate) path: String,
    pub(crate) file: OwnedFd,
}

impl Recording {
    /// The recording of a holder that is gone.
    pub(crate) fn reopen(path: &str) -> Result<Self, CaptureError> {
        let file = nbd_record::file::reopen(Path::new(path))?;
        Ok(Self { path: path.into(), file: file.into() })
    }
}
