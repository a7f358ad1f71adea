//! `record:FILE@SPEC`: writes down everything that changes the export below, and what is durable
//! when, for `nbd-serve powercut`.

pub(crate) mod log;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use nbd_backend::{Backend, Command, Geometry};
use nbd_control::settings::Setting;
use thiserror::Error;

use crate::estate::Estate;
use crate::export::ExportError;
use crate::layer::{Around, Layered};
use crate::lock::{self, LockError};
use crate::source::Source;

use log::{Kind, Log, LogError};

const KEEPSAKE: &str = "record";

/// Why nothing can be recorded.
#[derive(Debug, Error)]
pub(crate) enum RecordError {
    #[error("cannot be opened or made")]
    Open(#[source] io::Error),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("is not the log of the device: detach it first, or put the log back in its place")]
    OtherFile,
}

/// Records what happens to `inner`.
pub(crate) fn open(inner: Box<dyn Source>, path: PathBuf) -> Box<dyn Source> {
    Box::new(RecordSource { inner, path })
}

#[derive(Debug)]
struct RecordSource {
    inner: Box<dyn Source>,
    path: PathBuf,
}

impl RecordSource {
    fn open_log(&self, estate: &mut Estate<'_>) -> Result<Result<Log, RecordError>, ExportError> {
        let size = self.geometry().size;
        if let Some(kept) = estate.inherit(KEEPSAKE)? {
            return Ok(self.check(&kept).and_then(|()| Ok(Log::resume(kept, size)?)));
        }
        let file = match self.first() {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        estate.keep(KEEPSAKE, &file)?;
        Ok(Log::resume(file, size).map_err(Into::into))
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

impl Source for RecordSource {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn agree(&mut self, size: u64) {
        self.inner.agree(size);
    }

    fn peek(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.peek(buffer, offset)
    }

    fn settings(&self, all: &mut Vec<Setting>) {
        self.inner.settings(all);
    }

    fn keepsakes(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{KEEPSAKE}"));
        self.inner.keepsakes(&format!("{place}{KEEPSAKE}."), names);
    }

    fn examine(&mut self, estate: &mut Estate<'_>) -> Result<(), ExportError> {
        if let Some(kept) = estate.inherit(KEEPSAKE)? {
            let path = self.path.clone();
            self.check(&kept).map_err(|source| ExportError::Record { path, source })?;
        }
        estate.within(KEEPSAKE, |estate| self.inner.examine(estate))
    }

    fn settle(self: Box<Self>, estate: &mut Estate<'_>) -> Result<Arc<dyn Backend>, ExportError> {
        let log = self.open_log(estate)?;
        let Self { inner, path } = *self;
        let log = log.map_err(|source| ExportError::Record { path, source })?;
        let inner = estate.within(KEEPSAKE, |estate| inner.settle(estate))?;
        Ok(Arc::new(Layered::with(inner, Box::new(Recorder(Mutex::new(log))))))
    }

    fn tell(&self) {
        self.inner.tell();
    }
}

struct Recorder(Mutex<Log>);

impl Recorder {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry is made after its command was carried out and before it is answered. So what has been
/// answered is in the log; and what is in the log may be on the disk.
impl Around for Recorder {
    fn around(
        &self,
        command: &Command,
        payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let (kind, fua) = match *command {
            Command::Write { fua, .. } => (Kind::Write, fua),
            Command::WriteZeroes { fua, .. } => (Kind::Zero, fua),
            // It may read as anything afterwards, so as zeroes, too.
            Command::Trim { fua, .. } => (Kind::Zero, fua),
            Command::Flush => {
                // It covers what was answered before it, and nothing that is answered meanwhile.
                let covers = self.log().count();
                inner()?;
                return self.log().flush(covers);
            }
            _ => return inner(),
        };
        let (offset, length) = command.range();
        inner()?;
        self.log().change(kind, offset, length, fua, payload)
    }
}
