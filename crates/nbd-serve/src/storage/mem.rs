//! Memory that outlives the process: a memfd that the holder keeps.

use std::fs::File;
use std::io;

use nbd_backend::{Capabilities, Geometry};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sysinfo::sysinfo;
use thiserror::Error;

use crate::size::Size;
use crate::spec::MemorySpec;

/// The name under which the holder keeps it.
pub(crate) const STORED_FD_NAME: &str = "memory";

/// Why there is no memory to serve.
#[derive(Debug, Error)]
pub(crate) enum MemoryError {
    #[error("cannot make memory of {}", Size(*.size))]
    Make { size: u64, source: io::Error },
    #[error("cannot examine the memory that the predecessor left")]
    Examine(#[source] io::Error),
    #[error(
        "the device's memory has {} and not {}: its size cannot change while it is attached",
        Size(*.found), Size(*.asked)
    )]
    OtherSize { found: u64, asked: u64 },
    #[error(
        "what the predecessor left is not memory that keeps its size, so it was not left by \
         this program: detach the device"
    )]
    NotOurs,
}

/// Memory needs no flush; and what is no longer needed is given back.
pub(crate) fn geometry(spec: MemorySpec) -> Geometry {
    Geometry {
        size: spec.size,
        block_size: spec.block,
        capabilities: Capabilities {
            volatile: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            extents: true,
            unaligned: true,
            ..Capabilities::default()
        },
    }
}

/// What to know about memory of this size, if the machine has less than that.
pub(crate) fn shortage(size: u64) -> Option<String> {
    let total = sysinfo().ok()?.ram_total();
    (size > total).then(|| {
        format!(
            "{} is more than the {} MiB of memory of this machine: writing to more of it than \
             is free makes the kernel swap or end processes. Choose a smaller size, or serve a \
             file: file:PATH,create={}",
            Size(size),
            total >> 20,
            Size(size)
        )
    })
}

/// New memory, all zeroes. It takes up room only as it is written to.
pub(crate) fn make(size: u64) -> Result<File, MemoryError> {
    let make = || -> io::Result<File> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"nbd-memory", flags)?);
        file.set_len(size)?;
        let seals = size_seals() | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file)
    };
    make().map_err(|source| MemoryError::Make { size, source })
}

/// Checks that a keepsake is the memory that this device had before.
pub(crate) fn check(keepsake: &File, size: u64) -> Result<(), MemoryError> {
    let seals = match fcntl(keepsake, FcntlArg::F_GET_SEALS) {
        Ok(seals) => SealFlag::from_bits_retain(seals),
        Err(nix::Error::EINVAL) => return Err(MemoryError::NotOurs),
        Err(errno) => return Err(MemoryError::Examine(errno.into())),
    };
    if !seals.contains(size_seals()) {
        return Err(MemoryError::NotOurs);
    }
    let found = keepsake.metadata().map_err(MemoryError::Examine)?.len();
    if found == size { Ok(()) } else { Err(MemoryError::OtherSize { found, asked: size }) }
}

fn size_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW
}
