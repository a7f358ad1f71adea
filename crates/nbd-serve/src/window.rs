//! Layers before they are served: parts of another export, and what does something around it.

use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbd_backend::{Backend, Capabilities, Geometry};
use nbd_control::settings::Setting;
use thiserror::Error;

use crate::estate::Estate;
use crate::export::ExportError;
use crate::layer::{self, Layered, Schema};
use crate::mem;
use crate::partition::{self, PartitionError, Range};
use crate::size::Size;
use crate::source::Source;

/// The name under which the holder keeps which part is served.
const KEEPSAKE: &str = "range";

/// Why a part of an export cannot be served.
#[derive(Debug, Error)]
pub(crate) enum WindowError {
    #[error("partition {number}")]
    Partition { number: u32, source: PartitionError },
    #[error("offset {}: is not within the {} of what is below it", Size(*.start), Size(*.size))]
    Outside { start: u64, size: u64 },
    #[error(
        "{what} {}: is not a multiple of the block size {block} of what is below it", Size(*.value)
    )]
    Unaligned { what: &'static str, value: u64, block: u32 },
    #[error(
        "is not the part that was attached, which is {} at {}: detach the device first",
        Size(.0.length), Size(.0.start)
    )]
    OtherRange(Range),
    #[error("cannot note or read which part is served")]
    Note(#[source] io::Error),
}

/// Only a partition.
pub(crate) fn partition(
    inner: Box<dyn Source>,
    number: u32,
) -> Result<Box<dyn Source>, ExportError> {
    let Geometry { size, block_size, .. } = inner.geometry();
    let read = |buffer: &mut [u8], offset: u64| inner.peek(buffer, offset);
    let range = partition::find(&read, size, block_size, number)
        .map_err(|source| WindowError::Partition { number, source })?;
    Ok(Box::new(Window::new(inner, range)?))
}

/// Only what begins at `start`.
pub(crate) fn offset(
    inner: Box<dyn Source>,
    start: u64,
    length: Option<u64>,
) -> Result<Box<dyn Source>, ExportError> {
    let size = inner.geometry().size;
    let left = size.saturating_sub(start);
    let length = length.unwrap_or(left);
    if length == 0 || length > left {
        return Err(WindowError::Outside { start: start.saturating_add(length), size }.into());
    }
    Ok(Box::new(Window::new(inner, Range { start, length })?))
}

#[derive(Debug)]
struct Window {
    inner: Box<dyn Source>,
    range: Range,
}

impl Window {
    fn new(inner: Box<dyn Source>, range: Range) -> Result<Self, WindowError> {
        let block = inner.geometry().block_size;
        for (what, value) in [("offset", range.start), ("length", range.length)] {
            if !value.is_multiple_of(u64::from(block)) {
                return Err(WindowError::Unaligned { what, value, block });
            }
        }
        Ok(Self { inner, range })
    }

    /// A successor must serve the same part. It is noted where only the holder can lose it.
    fn settle_range(&self, estate: &mut Estate<'_>) -> Result<(), ExportError> {
        if self.is_noted(estate)? {
            return Ok(());
        }
        let Range { start, length } = self.range;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..].copy_from_slice(&length.to_le_bytes());
        let note = mem::make(bytes.len() as u64)
            .map_err(|source| ExportError::Memory { object: KEEPSAKE.into(), source })?;
        note.write_all_at(&bytes, 0).map_err(WindowError::Note)?;
        estate.keep(KEEPSAKE, &note)
    }

    /// Whether a predecessor has noted this part; another one is an error.
    fn is_noted(&self, estate: &Estate<'_>) -> Result<bool, ExportError> {
        let mut bytes = [0; 16];
        if let Some(kept) = estate.inherit(KEEPSAKE)? {
            kept.read_exact_at(&mut bytes, 0).map_err(WindowError::Note)?;
            let number = |at: usize| {
                bytes[at..at + 8]
                    .iter()
                    .rev()
                    .fold(0, |number, byte| number << 8 | u64::from(*byte))
            };
            let was = Range { start: number(0), length: number(8) };
            if was != self.range {
                return Err(WindowError::OtherRange(was).into());
            }
            return Ok(true);
        }
        Ok(false)
    }
}

impl Source for Window {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.range.length, ..self.inner.geometry() }
    }

    fn agree(&mut self, size: u64) {
        self.range.length = self.range.length.min(size);
    }

    fn peek(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.peek(buffer, self.range.start + offset)
    }

    fn settings(&self, all: &mut Vec<Setting>) {
        self.inner.settings(all);
    }

    fn keepsakes(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{KEEPSAKE}"));
        self.inner.keepsakes(&format!("{place}{KEEPSAKE}."), names);
    }

    fn examine(&mut self, estate: &mut Estate<'_>) -> Result<(), ExportError> {
        self.is_noted(estate)?;
        estate.within(KEEPSAKE, |estate| self.inner.examine(estate))
    }

    fn settle(self: Box<Self>, estate: &mut Estate<'_>) -> Result<Arc<dyn Backend>, ExportError> {
        self.settle_range(estate)?;
        let (geometry, start) = (self.geometry(), self.range.start);
        let inner = estate.within(KEEPSAKE, |estate| self.inner.settle(estate))?;
        Ok(Arc::new(Layered::window(inner, geometry, start)))
    }

    fn tell(&self) {
        self.inner.tell();
    }
}

/// Refuses to be written to.
pub(crate) fn read_only(inner: Box<dyn Source>) -> Box<dyn Source> {
    Box::new(Wrapped { inner, wrap: Wrap::ReadOnly })
}

/// Does what a schema is for around each command.
pub(crate) fn tuned(
    inner: Box<dyn Source>,
    schema: &'static Schema,
    values: Vec<u64>,
) -> Box<dyn Source> {
    Box::new(Wrapped { inner, wrap: Wrap::Tuned(schema, values) })
}

/// A layer that changes nothing of where the data is: so a successor may come with it or without.
struct Wrapped {
    inner: Box<dyn Source>,
    wrap: Wrap,
}

enum Wrap {
    ReadOnly,
    Tuned(&'static Schema, Vec<u64>),
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Source for Wrapped {
    fn geometry(&self) -> Geometry {
        let geometry = self.inner.geometry();
        match self.wrap {
            Wrap::Tuned(..) => geometry,
            Wrap::ReadOnly => {
                let can = geometry.capabilities;
                let capabilities = Capabilities {
                    read_only: true,
                    cache: can.cache,
                    extents: can.extents,
                    unaligned: can.unaligned,
                    rotational: can.rotational,
                    ..Capabilities::default()
                };
                Geometry { capabilities, ..geometry }
            }
        }
    }

    fn agree(&mut self, size: u64) {
        self.inner.agree(size);
    }

    fn grow(&mut self, size: u64) -> Result<(), ExportError> {
        self.inner.grow(size)
    }

    fn peek(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.peek(buffer, offset)
    }

    fn settings(&self, all: &mut Vec<Setting>) {
        if let Wrap::Tuned(schema, values) = &self.wrap {
            let own = schema.settings(values, all);
            all.extend(own);
        }
        self.inner.settings(all);
    }

    fn keepsakes(&self, place: &str, names: &mut Vec<String>) {
        self.inner.keepsakes(place, names);
    }

    fn examine(&mut self, estate: &mut Estate<'_>) -> Result<(), ExportError> {
        self.inner.examine(estate)
    }

    fn settle(self: Box<Self>, estate: &mut Estate<'_>) -> Result<Arc<dyn Backend>, ExportError> {
        let geometry = self.geometry();
        let Self { inner, wrap } = *self;
        match wrap {
            Wrap::ReadOnly => Ok(Arc::new(Layered::window(inner.settle(estate)?, geometry, 0))),
            Wrap::Tuned(schema, values) => {
                let knobs = estate.knobs(schema, values);
                let inner = inner.settle(estate)?;
                Ok(match knobs {
                    Some(knobs) => Arc::new(Layered::with(inner, layer::tuned(schema, knobs))),
                    None => inner,
                })
            }
        }
    }

    fn tell(&self) {
        self.inner.tell();
    }
}
