//! The plan of `file:`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbd_backend::Geometry;

use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened};
use crate::size::Size;
use crate::storage::file::FileExport;
use crate::storage::probe::Probe;
use crate::storage::{aligned, file_reuse};

impl ExportPlan for Probe {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn clamp_size(&mut self, size: u64) {
        if self.geometry.size > size {
            self.notes.push(format!(
                "has grown to {}; the device keeps its {}",
                Size(self.geometry.size),
                Size(size)
            ));
            self.geometry.size = size;
        }
    }

    /// It was looked at a moment ago.
    fn grow(&mut self, _size: u64) -> Result<(), ExportError> {
        Ok(())
    }

    fn read_before_open(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(file) = &self.file else {
            // It is yet to be made.
            buffer.fill(0);
            return Ok(());
        };
        if !self.spec.direct {
            return file.read_exact_at(buffer, offset);
        }
        // What is asked for may begin and end anywhere.
        let block = u64::from(self.geometry.block_size);
        let start = offset - offset % block;
        let length = (offset + buffer.len() as u64).next_multiple_of(block) - start;
        let skip = (offset - start) as usize;
        if length > aligned::MAX_BUFFER_LEN as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        aligned::with_buffer(length as usize, |data| {
            file.read_exact_at(data, start)?;
            buffer.copy_from_slice(&data[skip..skip + buffer.len()]);
            Ok(())
        })
    }

    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{}", file_reuse::STORED_FD_NAME));
    }

    fn examine(&mut self, fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        inherit_file(self, fds).map(drop)
    }

    fn open_storage(mut self: Box<Self>, fds: &mut FdScope<'_>) -> Opened {
        let file = open_file(&mut self, fds);
        self.tell();
        let Self { spec, kind, geometry, .. } = *self;
        Ok(Arc::new(FileExport::new(file?, spec.path, kind, spec.direct, geometry)))
    }

    fn tell(&self) {
        for note in &self.notes {
            tracing::info!("{}: {note}", self.spec.path.display());
        }
    }
}

/// The predecessor's file, if it left one; it must be the one that is named.
fn inherit_file(probe: &mut Probe, fds: &FdScope<'_>) -> Result<Option<File>, ExportError> {
    let Some(file) = fds.inherit(file_reuse::STORED_FD_NAME)? else {
        return Ok(None);
    };
    let path = probe.spec.path.clone();
    file_reuse::check(probe, &file).map_err(|source| ExportError::FileReuse { path, source })?;
    Ok(Some(file))
}

fn open_file(probe: &mut Probe, fds: &mut FdScope<'_>) -> Result<File, ExportError> {
    if let Some(file) = inherit_file(probe, fds)? {
        return Ok(file);
    }
    let path = probe.spec.path.clone();
    let failed = |source| ExportError::FileReuse { path, source };
    let file = file_reuse::first(probe).map_err(failed)?;
    fds.keep(file_reuse::STORED_FD_NAME, &file)?;
    Ok(file)
}
