//! The plan of `cow:BASE+DIFF`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_backend::{Capabilities, Geometry};
use nbd_control::settings::Setting;

use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened};
use crate::layers::cow::CowError;
use crate::layers::cow::diff_file::{self, is_new};
use crate::layers::cow::map::Map;
use crate::layers::cow::overlay::Overlay;

/// The name under which the holder keeps the diff; what is below has it in front.
const STORED_FD_NAME: &str = "diff";
const BASE: &str = "base";

/// A base and a diff that may be there or not.
#[derive(Debug)]
pub(crate) struct CowPlan {
    base: Box<dyn ExportPlan>,
    diff: PathBuf,
    read_only: bool,
    geometry: Geometry,
}

impl CowPlan {
    /// Looks at both. Nothing is made or locked by that.
    pub(crate) fn open(
        base: Box<dyn ExportPlan>,
        diff: PathBuf,
        read_only: bool,
    ) -> Result<Self, ExportError> {
        let below = base.geometry();
        let known = diff_file::layout(&diff).map_err(|error| failed(&diff, error))?;
        let size = known.map_or(below.size, |layout| layout.size);
        if size > below.size {
            return Err(failed(&diff, CowError::SmallBase { diff: size, base: below.size }));
        }
        let capabilities = Capabilities {
            read_only,
            flush: !read_only,
            fua: !read_only,
            trim: !read_only,
            write_zeroes: !read_only,
            fast_zero: !read_only,
            extents: true,
            unaligned: below.capabilities.unaligned,
            ..Capabilities::default()
        };
        let geometry = Geometry { size, block_size: below.block_size, capabilities };
        Ok(Self { base, diff, read_only, geometry })
    }

    /// The predecessor's diff, if it left one; it must be the one that is named.
    fn inherit_diff(&self, fds: &FdScope<'_>) -> Result<Option<File>, ExportError> {
        let kept = fds.inherit(STORED_FD_NAME)?;
        if let Some(kept) = &kept {
            diff_file::check(&self.diff, kept).map_err(|error| failed(&self.diff, error))?;
        }
        Ok(kept)
    }

    fn open_diff(&self, fds: &mut FdScope<'_>) -> Result<File, ExportError> {
        if let Some(kept) = self.inherit_diff(fds)? {
            return Ok(kept);
        }
        let file = diff_file::first(&self.diff, self.geometry.size, self.read_only)
            .map_err(|error| failed(&self.diff, error))?;
        fds.keep(STORED_FD_NAME, &file)?;
        Ok(file)
    }
}

impl ExportPlan for CowPlan {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn clamp_size(&mut self, size: u64) {
        self.geometry.size = self.geometry.size.min(size);
    }

    fn read_before_open(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(file) = File::open(&self.diff).ok().filter(|_| !is_new(&self.diff)) else {
            return self.base.read_before_open(buffer, offset);
        };
        let map = Map::look(file).map_err(io::Error::other)?;
        map.runs(offset, offset + buffer.len() as u64, |start, end, is_own| {
            let piece = &mut buffer[(start - offset) as usize..(end - offset) as usize];
            if is_own {
                map.file().read_exact_at(piece, map.layout().data + start)
            } else {
                self.base.read_before_open(piece, start)
            }
        })
    }

    fn settings(&self, all: &mut Vec<Setting>) {
        self.base.settings(all);
    }

    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{STORED_FD_NAME}"));
        self.base.stored_fd_names(&format!("{place}{BASE}."), names);
    }

    fn examine(&mut self, fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        self.inherit_diff(fds)?;
        fds.within(BASE, |fds| self.base.examine(fds))
    }

    fn open_storage(self: Box<Self>, fds: &mut FdScope<'_>) -> Opened {
        let file = self.open_diff(fds)?;
        let Self { base, diff, geometry, read_only } = *self;
        let map = if read_only { Map::look(file) } else { Map::open(file) };
        let map = map.map_err(|error| failed(&diff, error))?;
        let base = fds.within(BASE, |fds| base.open_storage(fds))?;
        let overlay = Overlay::new(base, diff.clone(), map, geometry)
            .map_err(|error| failed(&diff, CowError::Access(error)))?;
        Ok(Arc::new(overlay))
    }

    fn tell(&self) {
        self.base.tell();
    }
}

fn failed(diff: &Path, source: CowError) -> ExportError {
    ExportError::Cow { path: diff.into(), source }
}
