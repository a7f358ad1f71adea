//! Disks that are not stored anywhere: `null:`, which reads as zeroes whatever is written to it,
//! and `pattern:`, whose every eight bytes are their own offset, big-endian.

use std::io;

use nbd_backend::{
    Backend, Capabilities, Extent, Geometry, InlineBackend, NeverBlocks, ZeroOptions,
};

use crate::spec::MemorySpec;

/// Longest command that the lane's own thread executes.
const MAX_INLINE_LEN: u64 = 1 << 20;

/// Zeroes.
#[derive(Debug)]
pub(crate) struct Null(pub(crate) Geometry);

/// Offsets.
#[derive(Debug)]
pub(crate) struct Pattern(pub(crate) Geometry);

/// What is never stored needs nothing to become durable.
pub(crate) fn null(spec: MemorySpec) -> Geometry {
    let capabilities = Capabilities {
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        extents: true,
        unaligned: true,
        ..Capabilities::default()
    };
    Geometry { size: spec.size, block_size: spec.block, capabilities }
}

pub(crate) fn pattern(spec: MemorySpec) -> Geometry {
    let capabilities = Capabilities { read_only: true, unaligned: true, ..Capabilities::default() };
    Geometry { size: spec.size, block_size: spec.block, capabilities }
}

impl Backend for Null {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn read_at(&self, buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64, _fua: bool) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _how: ZeroOptions) -> io::Result<()> {
        Ok(())
    }

    fn extents(&self, _offset: u64, length: u64, _one: bool) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { length, hole: true, zero: true }])
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        Some(&NeverBlocks(MAX_INLINE_LEN))
    }
}

impl Backend for Pattern {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        fill(buffer, offset);
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64, _fua: bool) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        Some(&NeverBlocks(MAX_INLINE_LEN))
    }
}

fn fill(buffer: &mut [u8], offset: u64) {
    for (at, byte) in (offset..).zip(buffer) {
        *byte = (at & !7).to_be_bytes()[(at & 7) as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_eight_bytes_are_their_offset_wherever_one_begins_to_read() {
        let mut buffer = [0xff; 11];
        fill(&mut buffer, 0x0102_0304_0506_0705);
        assert_eq!(buffer, [6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn null_forgets() {
        let null = Null(null(MemorySpec { size: 4096, block: 512 }));
        null.write_at(&[7; 512], 0, true).unwrap();
        let mut buffer = [1; 512];
        null.read_at(&mut buffer, 0).unwrap();
        assert_eq!(buffer, [0; 512]);
        null.flush().unwrap();
    }
}
