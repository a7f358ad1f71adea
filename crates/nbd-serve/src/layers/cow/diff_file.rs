//! Opening, making and checking the file of a diff.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::error::CowError;
use super::format::{self, Layout};
use crate::storage::{file_reuse, lock};

pub(crate) fn is_new(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |metadata| metadata.len() == 0)
}

/// What a diff says of itself; nothing if it is yet to be made.
pub(crate) fn layout(path: &Path) -> Result<Option<Layout>, CowError> {
    match File::open(path) {
        Ok(_) if is_new(path) => Ok(None),
        Ok(file) => format::read(&file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CowError::Open(error)),
    }
}

/// Locks a diff that was never served before, and makes it if there is none.
pub(crate) fn first(path: &Path, size: u64, read_only: bool) -> Result<File, CowError> {
    let mut options = File::options();
    // What differs has the same secrets as the whole.
    options.read(true).write(!read_only).create(!read_only).mode(0o600);
    let file = options.open(path).map_err(CowError::Open)?;
    lock::lock(&file, read_only)?;
    if !read_only {
        make(&file, path, size).map_err(CowError::Make)?;
    }
    format::read(&file)?;
    Ok(file)
}

/// Makes an empty file a diff, and finishes one that was only begun.
fn make(file: &File, path: &Path, size: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length == 0 {
        format::write(file, &Layout::of(size))?;
    }
    if let Ok(layout) = format::read(file)
        && length < layout.end()
    {
        file.set_len(layout.end())?;
        file.sync_all()?;
        file_reuse::sync_directory(path)?;
    }
    Ok(())
}

/// Checks that a keepsake is what the path names.
pub(crate) fn check(path: &Path, kept: &File) -> Result<(), CowError> {
    let left = kept.metadata().map_err(CowError::Access)?;
    match fs::metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (left.dev(), left.ino()) => Ok(()),
        Ok(_) => Err(CowError::OtherFile),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(
                "{}: no longer exists; the device goes on with the deleted diff until \
                 it is detached",
                path.display()
            );
            Ok(())
        }
        Err(error) => Err(CowError::Open(error)),
    }
}
