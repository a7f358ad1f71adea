//! Which descriptor to serve: the one that a predecessor left, or a new one, locked.
//!
//! The first backend locks the file and deposits the descriptor with the holder. A lock belongs
//! to the open file description, and so does the kernel's memory of writeback errors that nobody
//! has been told yet; both outlive the process that way. A successor serves that very descriptor.
//! What the path names by then can be another file, which must never get the writes that were
//! meant for the first one.

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use thiserror::Error;

use crate::size::Size;
use crate::spec::FileSpec;
use crate::storage::file::FileKind;
use crate::storage::lock::{self, LockError, Locked};
use crate::storage::probe::{self, Probe};

/// The name under which the holder keeps the descriptor.
pub(crate) const STORED_FD_NAME: &str = "file";

/// Why a file is not served, although its path can be.
#[derive(Debug, Error)]
pub(crate) enum FileReuseError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(
        "is in use: it is mounted, or part of another device (see `lsblk`), so release it there \
         first"
    )]
    Claimed,
    #[error("cannot be opened again")]
    Reopen(#[source] io::Error),
    #[error("cannot be created")]
    Create(#[source] io::Error),
    #[error("cannot be examined")]
    Reexamine(#[source] io::Error),
    #[error("there is no room for a file of {}", Size(*.size))]
    Extend { size: u64, source: io::Error },
    #[error("cannot examine the file that the predecessor left")]
    Examine(#[source] io::Error),
    #[error(
        "is another file than the attached one, which is served on: detach the device first, or put that file back in its place"
    )]
    OtherFile,
    #[error("was attached {was} and cannot be served {now} before it is detached", was = mode(*.was), now = mode(!*.was))]
    OtherAccess { was: bool },
    #[error("was attached {was} the option `direct`: serve it in the same way, or detach it first", was = if *.0 { "with" } else { "without" })]
    OtherDirect(bool),
}

fn mode(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "writable" }
}

/// Locks a file that nobody has served before, and makes it if there is none.
pub(crate) fn first(probe: &mut Probe) -> Result<File, FileReuseError> {
    let (spec, is_ours) = (&probe.spec, probe.file.is_none());
    let file = match probe.file.take() {
        None => create(spec)?,
        Some(file) if probe.kind == FileKind::Device && !spec.read_only => claim(spec, &file)?,
        Some(file) => file,
    };
    if lock::lock(&file, spec.read_only)? == Locked::Impossible {
        probe.notes.push(
            "its file system has no locks: make sure that no other program writes to it".into(),
        );
    }
    if let Some(size) = spec.create {
        match extend(&file, &spec.path, size) {
            Ok(false) => {}
            Ok(true) => probe.notes.push(format!("is created, with {}", Size(size))),
            Err(error) => {
                if is_ours {
                    let _ = fs::remove_file(&spec.path);
                }
                return Err(error);
            }
        }
    }
    Ok(file)
}

/// Asks the kernel for exclusive use of a device, against mounts and device mappers, which know
/// nothing of locks. Only the first backend can ask: its descriptor goes on using the device.
fn claim(spec: &FileSpec, file: &File) -> Result<File, FileReuseError> {
    let direct = if spec.direct { libc::O_DIRECT } else { 0 };
    // Not by the path, which may name another device by now.
    probe::options(spec)
        .custom_flags(libc::O_EXCL | direct)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => FileReuseError::Claimed,
            _ => FileReuseError::Reopen(error),
        })
}

fn create(spec: &FileSpec) -> Result<File, FileReuseError> {
    // A disk has secrets that the reader of its directory need not see.
    probe::options(spec)
        .create_new(true)
        .mode(0o600)
        .open(&spec.path)
        .map_err(FileReuseError::Create)
}

/// Gives a file its size, unless it has one. An empty file may also be what a process left that
/// died just after it had created it.
fn extend(file: &File, path: &Path, size: u64) -> Result<bool, FileReuseError> {
    if file.metadata().map_err(FileReuseError::Reexamine)?.len() > 0 {
        return Ok(false);
    }
    file.set_len(size)
        .and_then(|()| sync_directory(path))
        .map_err(|source| FileReuseError::Extend { size, source })?;
    Ok(true)
}

/// What the kernel flushes to a file is only durable if the file itself is.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Checks that a keepsake is what the specification names.
pub(crate) fn check(probe: &mut Probe, keepsake: &File) -> Result<(), FileReuseError> {
    let left = keepsake.metadata().map_err(FileReuseError::Examine)?;
    match &probe.file {
        Some(file) => {
            let named = file.metadata().map_err(FileReuseError::Reexamine)?;
            let identity = |metadata: &fs::Metadata| match probe.kind {
                // There may be several nodes for one device.
                FileKind::Device => (0, 0, metadata.rdev()),
                _ => (metadata.dev(), metadata.ino(), 0),
            };
            if identity(&left) != identity(&named) {
                return Err(FileReuseError::OtherFile);
            }
        }
        None if left.len() < probe.geometry.size => return Err(FileReuseError::OtherFile),
        None => {
            const GONE: &str =
                "no longer exists; the device goes on with the deleted file until it is detached";
            // It may have been examined before.
            if probe.notes.iter().all(|note| note != GONE) {
                probe.notes.push(GONE.into());
            }
        }
    }
    check_mode(&probe.spec, keepsake)
}

fn check_mode(spec: &FileSpec, keepsake: &File) -> Result<(), FileReuseError> {
    let flags = fcntl(keepsake, FcntlArg::F_GETFL)
        .map_err(|errno| FileReuseError::Examine(errno.into()))?;
    let flags = OFlag::from_bits_retain(flags);
    let read_only = (flags & OFlag::O_ACCMODE) == OFlag::O_RDONLY;
    if read_only != spec.read_only {
        return Err(FileReuseError::OtherAccess { was: read_only });
    }
    let direct = flags.contains(OFlag::O_DIRECT);
    if direct != spec.direct {
        return Err(FileReuseError::OtherDirect(direct));
    }
    Ok(())
}
