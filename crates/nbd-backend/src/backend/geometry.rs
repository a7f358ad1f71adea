//! The shape of a device, and what its backend can do.

use nbd_control::backend::ExportInfo;
use nbd_proto::{RequestRules, TransmissionFlags};

/// A range of a device in which all blocks have the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not 0.
    pub length: u64,
    /// Whether it is not allocated.
    pub hole: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
}

/// Options of [`Backend::write_zeroes`](crate::Backend::write_zeroes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Make it durable before returning.
    pub fua: bool,
    /// Keep the range allocated.
    pub no_hole: bool,
    /// Fail with `Unsupported` at once if it would take as long as writing.
    pub fast_only: bool,
}

/// What a backend can do beside reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes are refused before they reach the backend.
    pub read_only: bool,
    /// [`Backend::flush`](crate::Backend::flush) makes data durable. Without it the kernel assumes that every write is.
    pub flush: bool,
    /// [`Backend::write_at`](crate::Backend::write_at) and the others honour `fua`.
    pub fua: bool,
    /// The storage is memory, so written data never becomes more durable. Network clients are
    /// offered flush and FUA all the same, which succeed and do nothing, because some insist on
    /// them. The kernel is not, because they would only cost time.
    pub volatile: bool,
    /// [`Backend::trim`](crate::Backend::trim) works.
    pub trim: bool,
    /// [`Backend::write_zeroes`](crate::Backend::write_zeroes) works.
    pub write_zeroes: bool,
    /// [`Backend::write_zeroes`](crate::Backend::write_zeroes) knows at once whether it would be slow: see
    /// [`ZeroOptions::fast_only`].
    pub fast_zero: bool,
    /// [`Backend::cache`](crate::Backend::cache) does something.
    pub cache: bool,
    /// [`Backend::extents`](crate::Backend::extents) can report holes or zeroes.
    pub extents: bool,
    /// Requests need not be aligned to [`Geometry::block_size`]. Network clients make use of that,
    /// the kernel never does.
    pub unaligned: bool,
    /// The storage is a spinning disk.
    pub rotational: bool,
}

/// Shape of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes: a positive multiple of `block_size`.
    pub size: u64,
    /// Logical block size in bytes: a power of two from 512 to 4096.
    pub block_size: u32,
    /// Its capabilities.
    pub capabilities: Capabilities,
}

impl Geometry {
    /// The shape of an attached device. Capabilities that the kernel does not use are false.
    #[must_use]
    pub fn of(attached: &ExportInfo) -> Self {
        let flags = TransmissionFlags::from_bits(attached.flags);
        let has = |flag| flags.contains(flag);
        let capabilities = Capabilities {
            read_only: has(TransmissionFlags::READ_ONLY),
            flush: has(TransmissionFlags::SEND_FLUSH),
            fua: has(TransmissionFlags::SEND_FUA),
            volatile: false,
            trim: has(TransmissionFlags::SEND_TRIM),
            write_zeroes: has(TransmissionFlags::SEND_WRITE_ZEROES),
            fast_zero: false,
            cache: has(TransmissionFlags::SEND_CACHE),
            rotational: has(TransmissionFlags::ROTATIONAL),
            extents: false,
            unaligned: false,
        };
        Self { size: attached.size, block_size: attached.block_size, capabilities }
    }

    /// The transmission flags of NBD for these capabilities.
    #[must_use]
    pub fn transmission_flags(&self) -> TransmissionFlags {
        let can = &self.capabilities;
        // One process serves all lanes, so a flush on one covers the writes on every other.
        let always = TransmissionFlags::HAS_FLAGS | TransmissionFlags::CAN_MULTI_CONN;
        [
            (can.read_only, TransmissionFlags::READ_ONLY),
            (can.flush, TransmissionFlags::SEND_FLUSH),
            (can.fua, TransmissionFlags::SEND_FUA),
            (can.trim, TransmissionFlags::SEND_TRIM),
            (can.write_zeroes, TransmissionFlags::SEND_WRITE_ZEROES),
            (can.write_zeroes && can.fast_zero, TransmissionFlags::SEND_FAST_ZERO),
            (can.cache, TransmissionFlags::SEND_CACHE),
            (can.rotational, TransmissionFlags::ROTATIONAL),
        ]
        .into_iter()
        .filter(|(can, _)| *can)
        .fold(always, |flags, (_, flag)| flags | flag)
    }

    /// The rules by which requests are checked.
    #[must_use]
    pub fn export(&self, max_payload: u32) -> RequestRules {
        RequestRules {
            size: self.size,
            flags: self.transmission_flags(),
            min_block_size: self.block_size,
            max_payload,
            block_status: false,
        }
    }

    /// The shape as the holder gets it.
    #[must_use]
    pub fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.size,
            block_size: self.block_size,
            // The kernel does not use fast zeroes, so two backends that differ only in that are
            // compatible.
            flags: self.transmission_flags().bits() & !TransmissionFlags::SEND_FAST_ZERO.bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_survives_the_way_through_export_info() {
        for bits in 0..1 << 6_u16 {
            let bit = |index: u16| bits >> index & 1 != 0;
            let capabilities = Capabilities {
                read_only: bit(0),
                flush: bit(1),
                fua: bit(2),
                trim: bit(3),
                write_zeroes: bit(4),
                cache: bit(5),
                ..Capabilities::default()
            };
            let geometry = Geometry { size: 1 << 30, block_size: 1024, capabilities };
            assert_eq!(Geometry::of(&geometry.info()), geometry);
            let capabilities = Capabilities { fast_zero: true, ..capabilities };
            let fast = Geometry { capabilities, ..geometry };
            assert_eq!(fast.info(), geometry.info(), "the kernel does not use fast zeroes");
        }
    }
}
