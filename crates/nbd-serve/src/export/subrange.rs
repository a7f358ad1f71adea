//! The plans of `partition:` and `offset:`: a part of another export.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbd_backend::Geometry;
use nbd_control::settings::Setting;

use crate::export::error::SubrangeError;
use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened};
use crate::layers::layered::Layered;
use crate::layers::partition::{self, Range};
use crate::storage::mem;

/// The name under which the holder keeps which part is served.
const STORED_FD_NAME: &str = "range";

/// Only a partition.
pub(crate) fn partition(
    inner: Box<dyn ExportPlan>,
    number: u32,
) -> Result<Box<dyn ExportPlan>, ExportError> {
    let Geometry { size, block_size, .. } = inner.geometry();
    let read = |buffer: &mut [u8], offset: u64| inner.read_before_open(buffer, offset);
    let range = partition::find(&read, size, block_size, number)
        .map_err(|source| SubrangeError::Partition { number, source })?;
    Ok(Box::new(Subrange::new(inner, range)?))
}

/// Only what begins at `start`.
pub(crate) fn offset(
    inner: Box<dyn ExportPlan>,
    start: u64,
    length: Option<u64>,
) -> Result<Box<dyn ExportPlan>, ExportError> {
    let size = inner.geometry().size;
    let left = size.saturating_sub(start);
    let length = length.unwrap_or(left);
    if length == 0 || length > left {
        return Err(SubrangeError::Outside { start: start.saturating_add(length), size }.into());
    }
    Ok(Box::new(Subrange::new(inner, Range { start, length })?))
}

#[derive(Debug)]
struct Subrange {
    inner: Box<dyn ExportPlan>,
    range: Range,
}

impl Subrange {
    fn new(inner: Box<dyn ExportPlan>, range: Range) -> Result<Self, SubrangeError> {
        let block = inner.geometry().block_size;
        for (what, value) in [("offset", range.start), ("length", range.length)] {
            if !value.is_multiple_of(u64::from(block)) {
                return Err(SubrangeError::Unaligned { what, value, block });
            }
        }
        Ok(Self { inner, range })
    }

    /// A successor must serve the same part. It is noted where only the holder can lose it.
    fn note_range(&self, fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        if self.is_noted(fds)? {
            return Ok(());
        }
        let Range { start, length } = self.range;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..].copy_from_slice(&length.to_le_bytes());
        let note = mem::make(bytes.len() as u64)
            .map_err(|source| ExportError::Memory { object: STORED_FD_NAME.into(), source })?;
        note.write_all_at(&bytes, 0).map_err(SubrangeError::Note)?;
        fds.keep(STORED_FD_NAME, &note)
    }

    /// Whether a predecessor has noted this part; another one is an error.
    fn is_noted(&self, fds: &FdScope<'_>) -> Result<bool, ExportError> {
        let mut bytes = [0; 16];
        if let Some(kept) = fds.inherit(STORED_FD_NAME)? {
            kept.read_exact_at(&mut bytes, 0).map_err(SubrangeError::Note)?;
            let [start, length] = [0, 1].map(|at| u64::from_le_bytes(bytes.as_chunks().0[at]));
            let was = Range { start, length };
            if was != self.range {
                return Err(SubrangeError::OtherRange(was).into());
            }
            return Ok(true);
        }
        Ok(false)
    }
}

impl ExportPlan for Subrange {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.range.length, ..self.inner.geometry() }
    }

    fn clamp_size(&mut self, size: u64) {
        self.range.length = self.range.length.min(size);
    }

    fn read_before_open(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_before_open(buffer, self.range.start + offset)
    }

    fn settings(&self, all: &mut Vec<Setting>) {
        self.inner.settings(all);
    }

    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{STORED_FD_NAME}"));
        self.inner.stored_fd_names(&format!("{place}{STORED_FD_NAME}."), names);
    }

    fn examine(&mut self, fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        self.is_noted(fds)?;
        fds.within(STORED_FD_NAME, |fds| self.inner.examine(fds))
    }

    fn open_storage(self: Box<Self>, fds: &mut FdScope<'_>) -> Opened {
        self.note_range(fds)?;
        let (geometry, start) = (self.geometry(), self.range.start);
        let inner = fds.within(STORED_FD_NAME, |fds| self.inner.open_storage(fds))?;
        Ok(Arc::new(Layered::subrange(inner, geometry, start)))
    }

    fn loses_writes(&self) -> Option<String> {
        self.inner.loses_writes()
    }

    fn tell(&self) {
        self.inner.tell();
    }
}
