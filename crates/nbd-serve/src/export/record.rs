//! `record:FILE@SPEC`: writes down everything that changes the export below, and what is durable
//! when, for `nbd-serve powercut`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use nbd_backend::Geometry;
use nbd_control::settings::Setting;

use crate::export::error::RecordError;
use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened};
use crate::layers::layered::Layered;
use crate::layers::record::Recorder;
use crate::layers::write_log::Log;
use crate::storage::lock;

const STORED_FD_NAME: &str = "record";

/// Records what happens to `inner`.
pub(crate) fn open(inner: Box<dyn ExportPlan>, path: PathBuf) -> Box<dyn ExportPlan> {
    Box::new(RecordPlan { inner, path })
}

#[derive(Debug)]
struct RecordPlan {
    inner: Box<dyn ExportPlan>,
    path: PathBuf,
}

impl RecordPlan {
    /// The predecessor's log, if it left one; it must be the one that is named.
    fn inherit_log(&self, fds: &FdScope<'_>) -> Result<Option<File>, ExportError> {
        let kept = fds.inherit(STORED_FD_NAME)?;
        if let Some(kept) = &kept {
            self.check(kept).map_err(|error| self.failed(error))?;
        }
        Ok(kept)
    }

    fn open_log(&self, fds: &mut FdScope<'_>) -> Result<Log, ExportError> {
        let file = match self.inherit_log(fds)? {
            Some(kept) => kept,
            None => {
                let file = self.first().map_err(|error| self.failed(error))?;
                fds.keep(STORED_FD_NAME, &file)?;
                file
            }
        };
        Log::resume(file, self.geometry().size).map_err(|error| self.failed(error.into()))
    }

    fn failed(&self, source: RecordError) -> ExportError {
        ExportError::Record { path: self.path.clone(), source }
    }

    fn first(&self) -> Result<File, RecordError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.path).map_err(RecordError::Open)?;
        lock::lock(&file, false)?;
        Ok(file)
    }

    /// A log without a gap is only in the file that the first one began.
    fn check(&self, kept: &File) -> Result<(), RecordError> {
        let left = kept.metadata().map_err(RecordError::Open)?;
        match fs::metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) == (left.dev(), left.ino()) => Ok(()),
            _ => Err(RecordError::OtherFile),
        }
    }
}

impl ExportPlan for RecordPlan {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn clamp_size(&mut self, size: u64) {
        self.inner.clamp_size(size);
    }

    fn read_before_open(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_before_open(buffer, offset)
    }

    fn settings(&self, all: &mut Vec<Setting>) {
        self.inner.settings(all);
    }

    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{STORED_FD_NAME}"));
        self.inner.stored_fd_names(&format!("{place}{STORED_FD_NAME}."), names);
    }

    fn examine(&mut self, fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        self.inherit_log(fds)?;
        fds.within(STORED_FD_NAME, |fds| self.inner.examine(fds))
    }

    fn open_storage(self: Box<Self>, fds: &mut FdScope<'_>) -> Opened {
        let log = self.open_log(fds)?;
        let inner = fds.within(STORED_FD_NAME, |fds| self.inner.open_storage(fds))?;
        Ok(Arc::new(Layered::with(inner, Box::new(Recorder::new(log)))))
    }

    fn loses_writes(&self) -> Option<String> {
        self.inner.loses_writes()
    }

    fn tell(&self) {
        self.inner.tell();
    }
}
