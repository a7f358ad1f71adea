//! Reading and writing a base and a diff as one device.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nbd_backend::{
    Backend, Capabilities, Command, Extent, Geometry, InlineBackend, MappedBackend, MappedRange,
    ZeroOptions,
};

use super::format::{self, CLUSTER, Layout};
use super::map::{Allocating, Map};
use crate::storage::file::{FileExport, FileKind};

const MAX_EXTENTS: usize = 1024;

/// A base with a diff on top.
pub(crate) struct Overlay {
    base: Arc<dyn Backend>,
    diff: FileExport,
    map: Map,
    geometry: Geometry,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay").field("diff", &self.diff).finish_non_exhaustive()
    }
}

impl Overlay {
    pub(crate) fn new(
        base: Arc<dyn Backend>,
        path: PathBuf,
        map: Map,
        geometry: Geometry,
    ) -> io::Result<Self> {
        let diff = diff_storage(map.file().try_clone()?, path, map.layout());
        Ok(Self { base, diff, map, geometry })
    }

    fn at(&self, offset: u64) -> u64 {
        self.map.layout().data + offset
    }

    /// Writes what a new cluster has from the base, beside a range that is about to be written.
    fn copy_edges(&self, start: u64, end: u64) -> io::Result<()> {
        let head = start - start % CLUSTER;
        let tail = end.next_multiple_of(CLUSTER).min(self.map.layout().size);
        if head < start && !self.map.covers(head, start) {
            self.copy(head, start)?;
        }
        if end < tail && !self.map.covers(end, tail) {
            self.copy(end, tail)?;
        }
        Ok(())
    }

    /// Copies less than a cluster.
    fn copy(&self, start: u64, end: u64) -> io::Result<()> {
        let mut buffer = [0; CLUSTER as usize];
        let piece = &mut buffer[..(end - start) as usize];
        self.base.read_at(piece, start)?;
        self.diff.write_at(piece, self.at(start), false)
    }

    fn write_new(&self, map: &Allocating<'_>, data: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + data.len() as u64;
        self.copy_edges(offset, end)?;
        self.diff.write_at(data, self.at(offset), false)?;
        map.set(offset, end)
    }

    /// The whole clusters of a range.
    fn whole(&self, offset: u64, length: u64) -> (u64, u64) {
        let end = offset + length;
        // The last cluster may be a short one.
        let end = if end == self.map.layout().size { end } else { end - end % CLUSTER };
        (offset.next_multiple_of(CLUSTER).min(end), end)
    }

    fn flush_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }
}

impl Backend for Overlay {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.map.runs(offset, offset + buffer.len() as u64, |start, end, is_own| {
            let piece = &mut buffer[(start - offset) as usize..(end - offset) as usize];
            if is_own {
                self.diff.read_at(piece, self.at(start))
            } else {
                self.base.read_at(piece, start)
            }
        })
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let end = offset + data.len() as u64;
        if self.map.covers(offset, end) {
            self.diff.write_at(data, self.at(offset), false)?;
        } else {
            self.write_new(&self.map.allocating(), data, offset)?;
        }
        self.flush_if(fua)
    }

    fn flush(&self) -> io::Result<()> {
        self.map.flush()
    }

    fn close(&self) {
        self.base.close();
    }

    /// What is trimmed reads as zeroes, and takes up no room in the diff.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let (start, end) = self.whole(offset, length);
        if start < end {
            let map = self.map.allocating();
            let how = ZeroOptions { fast_only: true, ..ZeroOptions::default() };
            match self.diff.write_zeroes(self.at(start), end - start, how) {
                // It was a hint.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                other => other.and_then(|()| map.set(start, end))?,
            }
        }
        self.flush_if(fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        if length > 0 {
            let zeroes = [0; CLUSTER as usize];
            let end = offset + length;
            let (start, stop) = self.whole(offset, length);
            let map = self.map.allocating();
            if start < stop {
                let how = ZeroOptions { fua: false, ..how };
                self.diff.write_zeroes(self.at(start), stop - start, how)?;
                map.set(start, stop)?;
            }
            let edges = if start < stop {
                [(offset, start), (stop, end)]
            } else {
                [(offset, end), (end, end)]
            };
            for (start, end) in edges {
                let mut at = start;
                // A range without a whole cluster may still touch two.
                while at < end {
                    let next = (at - at % CLUSTER + CLUSTER).min(end);
                    self.write_new(&map, &zeroes[..(next - at) as usize], at)?;
                    at = next;
                }
            }
        }
        self.flush_if(how.fua)
    }

    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        let most = if one { 1 } else { MAX_EXTENTS };
        let end = offset + length;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < most {
            let (next, is_own) = self.map.run(at, end);
            let found = if is_own {
                self.diff.extents(self.at(at), next - at, one)
            } else {
                self.base.extents(at, next - at, one)
            };
            let found = match found {
                // What could be found out is an answer, and the client asks on from there.
                Err(_) if !extents.is_empty() => break,
                found => found?,
            };
            let length: u64 = found.iter().map(|extent| extent.length).sum();
            extents.extend(found);
            at += length;
        }
        Ok(extents)
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        Some(self)
    }

    fn as_mapped(&self) -> Option<&dyn MappedBackend> {
        Some(self)
    }
}

impl InlineBackend for Overlay {
    fn never_blocks(&self, command: &Command) -> bool {
        match *command {
            Command::Write { offset, length, fua: false } => {
                let at = Command::Write { offset: self.at(offset), length, fua: false };
                self.map.covers(offset, offset + u64::from(length)) && self.diff.never_blocks(&at)
            }
            _ => false,
        }
    }

    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        let end = offset + buffer.len() as u64;
        match (self.map.run(offset, end), self.base.as_inline()) {
            ((next, true), _) if next == end => self.diff.try_read_at(buffer, self.at(offset)),
            ((next, false), Some(base)) if next == end => base.try_read_at(buffer, offset),
            _ => Ok(false),
        }
    }
}

impl MappedBackend for Overlay {
    fn mapped_range(&self, offset: u64, length: u32) -> Option<MappedRange> {
        let end = offset + u64::from(length);
        match self.map.run(offset, end) {
            (next, true) if next == end => self.diff.mapped_range(self.at(offset), length),
            (next, false) if next == end => self.base.as_mapped()?.mapped_range(offset, length),
            _ => None,
        }
    }
}

/// The file of a diff as something to read from and write to.
pub(crate) fn diff_storage(file: File, path: PathBuf, layout: &Layout) -> FileExport {
    let geometry = Geometry {
        size: layout.end(),
        block_size: format::CLUSTER as u32,
        capabilities: Capabilities::default(),
    };
    FileExport::new(file, path, FileKind::Regular, false, geometry)
}
