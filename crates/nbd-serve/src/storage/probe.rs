//! What a path names now, and the shape of a device made of it.
//!
//! A shape is needed before the holder says whether this process is the first to serve the
//! device; so nothing is created, claimed or locked here. See [`file_reuse`](crate::storage::file_reuse).

#[cfg(test)]
mod tests;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nbd_backend::{Capabilities, Geometry};
use nix::sys::stat::{major, minor};
use thiserror::Error;

use crate::size::Size;
use crate::spec::{DIRECT_BLOCK, FileSpec, USUAL_BLOCK};
use crate::storage::file::FileKind;
use crate::storage::system;

/// What a path names.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) spec: FileSpec,
    /// Nothing if there is no such file yet, and the specification allows to create it.
    pub(crate) file: Option<File>,
    pub(crate) kind: FileKind,
    pub(crate) geometry: Geometry,
    /// Sentences that the operator should see.
    pub(crate) notes: Vec<String>,
}

/// Why a path cannot be served.
#[derive(Debug, Error)]
pub(crate) enum ProbeError {
    #[error(
        "there is no such file{}; `create=SIZE` makes one", wondering_about(.doubtful)
    )]
    Missing { doubtful: Option<String> },
    /// The device that is served from it is attached.
    #[error(
        "there is no such file{}: check the path; if it was deleted while it was served, the holder still has it \
         open: copy it from the holder's /proc/PID/fd before you detach", wondering_about(.doubtful)
    )]
    Deleted { doubtful: Option<String> },
    #[error("cannot examine it")]
    Examine(#[source] io::Error),
    #[error("is a {0}: only files and block devices can be served")]
    NoBlocks(&'static str),
    #[error("cannot be written to (add the option `ro` to serve it read-only)")]
    NotWritable(#[source] io::Error),
    #[error("cannot be read")]
    NotReadable(#[source] io::Error),
    #[error("does not support direct I/O: leave out the option `direct`")]
    NoDirect,
    #[error("is empty: give it a size with `truncate -s SIZE`, or remove it and use `create=SIZE`")]
    EmptyFile,
    #[error("has no medium, or nothing is attached to it: its size is 0")]
    EmptyDevice,
    #[error("has {size} bytes, less than one block of {block}")]
    TooSmall { size: u64, block: u32 },
    #[error(
        "exists and has {found} bytes instead of the {create} of `create={}`: leave that option \
         out to serve the file as it is",
        Size(*.create)
    )]
    OtherSize { found: u64, create: u64 },
    #[error("is a block device, which `create` cannot make: leave that option out")]
    CreateDevice,
    #[error("works with blocks of {needed} bytes only{for_direct}: leave out `block={block}`", for_direct = if *.direct { " with direct I/O" } else { "" })]
    BlockTooSmall { block: u32, needed: u32, direct: bool },
    #[error("has blocks of {0} bytes, and the kernel's NBD driver knows at most 4096")]
    BlockTooLarge(u32),
}

fn wondering_about(doubtful: &Option<String>) -> String {
    match doubtful {
        Some(end) => format!(" (and `{end}`, if that was meant as an option, is none)"),
        None => String::new(),
    }
}

impl ProbeError {
    /// The same of a file that a device is attached with.
    pub(crate) fn of_attached(self) -> Self {
        match self {
            Self::Missing { doubtful } => Self::Deleted { doubtful },
            other => other,
        }
    }
}

/// Looks at what a specification names.
pub(crate) fn probe(spec: FileSpec) -> Result<Probe, ProbeError> {
    match fs::metadata(&spec.path) {
        Ok(metadata) => examine(spec, &metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => absent(spec),
        Err(error) => Err(ProbeError::Examine(error)),
    }
}

fn absent(spec: FileSpec) -> Result<Probe, ProbeError> {
    let Some(size) = spec.create else {
        let doubtful = spec.doubtful_end().map(Into::into);
        return Err(ProbeError::Missing { doubtful });
    };
    Ok(Probe {
        file: None,
        kind: FileKind::Regular,
        geometry: Geometry {
            size,
            block_size: spec.block_of_new_file(),
            capabilities: capabilities(&spec, FileKind::Regular, None),
        },
        notes: Vec::new(),
        spec,
    })
}

fn examine(spec: FileSpec, metadata: &Metadata) -> Result<Probe, ProbeError> {
    let kind = kind(metadata)?;
    if kind == FileKind::Device && spec.create.is_some() {
        return Err(ProbeError::CreateDevice);
    }
    let mut file = open(&spec)?;
    let found = file.seek(SeekFrom::End(0)).map_err(ProbeError::Examine)?;
    let size = match spec.create {
        None => found,
        // See `file_reuse::extend`.
        Some(create) if found == 0 => create,
        // It has grown since it was made.
        Some(create) if found >= create => found,
        Some(create) => return Err(ProbeError::OtherSize { found, create }),
    };
    let mut notes = Vec::new();
    let block_size = block_size(&spec, kind, &file, &mut notes)?;
    let device = (kind == FileKind::Device).then(|| metadata.rdev());
    let geometry = Geometry {
        size: round_down(size, block_size, kind, &mut notes)?,
        block_size,
        capabilities: capabilities(&spec, kind, device),
    };
    Ok(Probe { spec, file: Some(file), kind, geometry, notes })
}

fn kind(metadata: &Metadata) -> Result<FileKind, ProbeError> {
    let file_type = metadata.file_type();
    Err(ProbeError::NoBlocks(if file_type.is_file() {
        return Ok(FileKind::Regular);
    } else if file_type.is_block_device() {
        return Ok(FileKind::Device);
    } else if file_type.is_dir() {
        "directory"
    } else if file_type.is_char_device() {
        "character device"
    } else if file_type.is_fifo() {
        "named pipe"
    } else {
        "socket"
    }))
}

fn open(spec: &FileSpec) -> Result<File, ProbeError> {
    options(spec).open(&spec.path).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) if spec.direct => ProbeError::NoDirect,
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY) if !spec.read_only => {
            ProbeError::NotWritable(error)
        }
        Some(libc::ENOMEDIUM) => ProbeError::EmptyDevice,
        _ if spec.read_only => ProbeError::NotReadable(error),
        _ => ProbeError::Examine(error),
    })
}

/// How to open what a specification names.
pub(crate) fn options(spec: &FileSpec) -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(!spec.read_only);
    if spec.direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options
}

/// A successor must find the same block size; so it may depend on the file, but not on whether
/// it is there.
fn block_size(
    spec: &FileSpec,
    kind: FileKind,
    file: &File,
    notes: &mut Vec<String>,
) -> Result<u32, ProbeError> {
    let mut needed = match kind {
        FileKind::Device => system::device_block_size(file).map_err(ProbeError::Examine)?,
        _ => USUAL_BLOCK,
    };
    if spec.direct {
        let direct = match system::direct_alignment(file) {
            Some(0) => return Err(ProbeError::NoDirect),
            Some(alignment) => alignment,
            None if kind == FileKind::Device => needed,
            None => DIRECT_BLOCK,
        };
        needed = needed.max(direct);
    }
    if needed > 4096 || !needed.is_power_of_two() {
        return Err(ProbeError::BlockTooLarge(needed));
    }
    let wanted = match spec.create {
        Some(_) => Some(spec.block_of_new_file()),
        None => spec.block,
    };
    let block = match wanted {
        Some(block) if block < needed => {
            let direct = spec.direct;
            return Err(ProbeError::BlockTooSmall { block, needed, direct });
        }
        Some(block) => block,
        None => needed,
    };
    if spec.direct && spec.block.is_none() && block > USUAL_BLOCK {
        notes.push(format!("direct I/O makes its block size {block} bytes"));
    }
    Ok(block)
}

fn round_down(
    size: u64,
    block: u32,
    kind: FileKind,
    notes: &mut Vec<String>,
) -> Result<u64, ProbeError> {
    let tail = size % u64::from(block);
    match (size - tail, kind) {
        (0, FileKind::Device) if size == 0 => Err(ProbeError::EmptyDevice),
        (0, _) if size == 0 => Err(ProbeError::EmptyFile),
        (0, _) => Err(ProbeError::TooSmall { size, block }),
        (rounded, _) => {
            if tail > 0 {
                notes.push(format!(
                    "its last {tail} bytes are not part of the device, whose size is a multiple \
                     of {block}"
                ));
            }
            Ok(rounded)
        }
    }
}

/// What can be done is promised to the kernel once and for all: what a file system may turn out
/// not to support is done in another way, or is a hint that may be ignored.
fn capabilities(spec: &FileSpec, kind: FileKind, device: Option<u64>) -> Capabilities {
    let queue = device.and_then(queue_directory);
    let number = |attribute: &str| -> Option<u64> {
        let text = fs::read_to_string(queue.as_ref()?.join(attribute)).ok()?;
        text.trim().parse().ok()
    };
    let writable = !spec.read_only;
    // The maximum itself can be changed by the operator, and flags must never change.
    let discards =
        kind != FileKind::Device || number("discard_max_hw_bytes").is_some_and(|max| max > 0);
    Capabilities {
        read_only: spec.read_only,
        flush: writable,
        fua: writable,
        volatile: false,
        trim: writable && discards,
        write_zeroes: writable,
        fast_zero: writable,
        cache: !spec.direct,
        extents: kind == FileKind::Regular,
        unaligned: kind == FileKind::Regular && !spec.direct,
        rotational: number("rotational") == Some(1),
    }
}

/// Where sysfs has the properties of a disk, or of the disk that a partition is on.
fn queue_directory(device: u64) -> Option<PathBuf> {
    let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let own = Path::new(&device).join("queue");
    let disk = Path::new(&device).join("../queue");
    [own, disk].into_iter().find(|queue| queue.is_dir())
}
