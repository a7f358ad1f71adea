//! The file of a capture: opening it, and what stands before its entries.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use thiserror::Error;

use crate::format::{CaptureHeader, CaptureState, END_OFFSET, ENTRIES_OFFSET, STATE_OFFSET, long};

/// Why a file cannot be used as a capture.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The file is no capture.
    #[error("is no recording of `nbd-ctl record`")]
    Foreign,
    /// A system call failed.
    #[error("cannot be opened, read or written")]
    Access(#[from] io::Error),
}

/// Opens an existing capture for writing. Opens nothing but a regular file that is a capture: other
/// users may control the path's directory, so a symbolic link is refused and a FIFO does not block.
///
/// # Errors
///
/// [`CaptureError::Access`] if the file cannot be opened or read; [`CaptureError::Foreign`] if it is
/// no regular file or no capture.
pub fn reopen(path: &Path) -> Result<File, CaptureError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(CaptureError::Foreign);
    }
    header(&file)?;
    Ok(file)
}

/// The header of a capture, and where the next entry belongs.
pub(crate) fn header(file: &File) -> Result<(CaptureHeader, u64), CaptureError> {
    let mut bytes = [0; ENTRIES_OFFSET as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(CaptureError::Foreign);
        }
        other => other?,
    }
    let header = CaptureHeader::decode(&bytes).ok_or(CaptureError::Foreign)?;
    Ok((header, long(&bytes, END_OFFSET as usize)))
}

/// Whether a capture still grows.
///
/// # Errors
///
/// The error of reading the file.
pub fn state(file: &File) -> io::Result<CaptureState> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, STATE_OFFSET)?;
    Ok(CaptureState::decode(u64::from_le_bytes(word)))
}
