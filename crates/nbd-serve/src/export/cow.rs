//! The plan of `cow:BASE+DIFF`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use nbd_backend::{Backend, Capabilities, Geometry};
use nbd_control::settings::Setting;

use crate::export::error::ExportError;
use crate::export::fd_store::FdScope;
use crate::export::plan::ExportPlan;
use crate::layers::cow::CowError;
use crate::layers::cow::diff_file::{self, is_new};
use crate::layers::cow::map::Map;
use crate::layers::cow::overlay::Overlay;

/// The name under which the holder keeps the diff; what is below has it in front.
const KEEPSAKE: &str = "diff";
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
        let known = match diff_file::layout(&diff) {
            Ok(known) => known,
            Err(source) => return Err(ExportError::Cow { path: diff, source }),
        };
        let size = known.map_or(below.size, |layout| layout.size);
        if size > below.size {
            let source = CowError::SmallBase { diff: size, base: below.size };
            return Err(ExportError::Cow { path: diff, source });
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

    fn open_diff(&self, fds: &mut FdScope<'_>) -> Result<Result<File, CowError>, ExportError> {
        if let Some(kept) = fds.inherit(KEEPSAKE)? {
            return Ok(diff_file::check(&self.diff, &kept).map(|()| kept));
        }
        let file = match diff_file::first(&self.diff, self.geometry.size, self.read_only) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        fds.keep(KEEPSAKE, &file)?;
        Ok(Ok(file))
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

    fn keepsakes(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{KEEPSAKE}"));
        self.base.keepsakes(&format!("{place}{BASE}."), names);
    }

    fn examine(&mut self, fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        if let Some(kept) = fds.inherit(KEEPSAKE)? {
            let path = self.diff.clone();
            diff_file::check(&self.diff, &kept)
                .map_err(|source| ExportError::Cow { path, source })?;
        }
        fds.within(BASE, |fds| self.base.examine(fds))
    }

    fn open_storage(
        self: Box<Self>,
        fds: &mut FdScope<'_>,
    ) -> Result<Arc<dyn Backend>, ExportError> {
        let opened = self
            .open_diff(fds)?
            .and_then(|file| if self.read_only { Map::look(file) } else { Map::open(file) });
        let Self { base, diff: path, geometry, .. } = *self;
        let map = match opened {
            Ok(map) => map,
            Err(source) => return Err(ExportError::Cow { path, source }),
        };
        let base = fds.within(BASE, |fds| base.open_storage(fds))?;
        let overlay = Overlay::new(base, path.clone(), map, geometry)
            .map_err(|error| ExportError::Cow { path, source: CowError::Access(error) })?;
        Ok(Arc::new(overlay))
    }

    fn tell(&self) {
        self.base.tell();
    }
}
