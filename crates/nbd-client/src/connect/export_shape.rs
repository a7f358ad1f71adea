//! The shape of a device made of a server's export, and whether an export still has it.

use nbd_backend::{Capabilities, Geometry};
use nbd_proto::TransmissionFlags;
use nbd_proto::handshake::Established;
use thiserror::Error;

/// The smallest block that the kernel knows.
const MIN_BLOCK_BYTES: u32 = 512;
/// The largest block that the kernel's NBD driver knows.
const MAX_BLOCK_BYTES: u32 = 4096;

/// Why an export cannot be a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// Its blocks are too large.
    #[error(
        "the export works with blocks of {0} bytes only, and the kernel's NBD driver knows at most \
         {MAX_BLOCK_BYTES}: have the server offer smaller ones (nbdkit: --filter=blocksize)"
    )]
    LargeBlocks(u32),
    /// There is not enough of it.
    #[error("the export has {size} bytes, less than one block of {block}: choose a larger export")]
    Small {
        /// Its size in bytes.
        size: u64,
        /// The block size of a device made of it.
        block: u32,
    },
}

/// Why an export can not take the place of the one that was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// It is smaller.
    #[error(
        "the export has {now} bytes where the device has {attached}: give it its old size back, or detach \
         the device and attach it anew"
    )]
    Size {
        /// Of the device, in bytes.
        attached: u64,
        /// Of the export, in bytes.
        now: u64,
    },
    /// It cannot be written to.
    #[error(
        "the export is read-only now: have the server open it for writing, or detach the device"
    )]
    ReadOnly,
    /// Its blocks have become larger.
    #[error(
        "the export works with blocks of {now} bytes now, and the device with {attached}: have the server \
         offer the old ones, or detach the device and attach it anew"
    )]
    Block {
        /// Of the device, in bytes.
        attached: u32,
        /// Of the export, in bytes.
        now: u32,
    },
    /// It can do less.
    #[error(
        "the export does not offer {0} any more, which the device relies on: have the server offer it"
    )]
    Lost(&'static str),
}

/// What a server offers, as the shape of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportShape {
    pub(crate) geometry: Geometry,
    /// Sentences that the operator should see.
    pub(crate) notes: Vec<String>,
}

impl ExportShape {
    pub(crate) fn of(offer: &Established, has_extents: bool) -> Result<Self, ShapeError> {
        let minimum = offer.block_sizes.minimum;
        if minimum > MAX_BLOCK_BYTES {
            return Err(ShapeError::LargeBlocks(minimum));
        }
        let block_size = minimum.clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES).next_power_of_two();
        let tail = offer.size % u64::from(block_size);
        let size = offer.size - tail;
        if size == 0 {
            return Err(ShapeError::Small { size: offer.size, block: block_size });
        }
        let mut notes = Vec::new();
        if tail > 0 {
            notes.push(format!(
                "its last {tail} bytes are not part of the device, whose size is a multiple of \
                 {block_size}"
            ));
        }
        let has = |flag| offer.flags.contains(flag);
        let is_writable = !has(TransmissionFlags::READ_ONLY);
        let capabilities = Capabilities {
            read_only: !is_writable,
            flush: has(TransmissionFlags::SEND_FLUSH),
            fua: has(TransmissionFlags::SEND_FUA),
            volatile: false,
            trim: is_writable && has(TransmissionFlags::SEND_TRIM),
            write_zeroes: is_writable && has(TransmissionFlags::SEND_WRITE_ZEROES),
            fast_zero: is_writable && has(TransmissionFlags::SEND_FAST_ZERO),
            cache: has(TransmissionFlags::SEND_CACHE),
            extents: has_extents,
            unaligned: minimum <= 1,
            rotational: has(TransmissionFlags::ROTATIONAL),
        };
        Ok(Self { geometry: Geometry { size, block_size, capabilities }, notes })
    }
}

/// Whether an export that has the shape `now` can serve a device that was attached with another.
///
/// What is only a hint, like caching and extents, may go: it is done without.
///
/// # Errors
///
/// It is smaller, or can do less.
pub fn check_change(attached: &Geometry, now: &Geometry) -> Result<(), ChangeError> {
    let (old, new) = (&attached.capabilities, &now.capabilities);
    // One that has grown serves a device that has not, until `nbd-ctl resize`.
    if now.size < attached.size {
        return Err(ChangeError::Size { attached: attached.size, now: now.size });
    }
    if new.read_only && !old.read_only {
        return Err(ChangeError::ReadOnly);
    }
    if now.block_size > attached.block_size || (old.unaligned && !new.unaligned) {
        let attached = if old.unaligned { 1 } else { attached.block_size };
        return Err(ChangeError::Block { attached, now: now.block_size });
    }
    let lost = [
        ("flush", old.flush && !new.flush),
        ("FUA", old.fua && !new.fua),
        ("trim", old.trim && !new.trim),
        ("write zeroes", old.write_zeroes && !new.write_zeroes),
        ("fast zeroing", old.fast_zero && !new.fast_zero),
    ];
    match lost.into_iter().find(|(_, is_lost)| *is_lost) {
        Some((what, _)) => Err(ChangeError::Lost(what)),
        None => Ok(()),
    }
}
