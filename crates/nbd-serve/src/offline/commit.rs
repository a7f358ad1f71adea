//! The end of a diff: into its base, or away.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nbd_backend::{Backend, ZeroOptions};

use crate::export::error::ExportError;
use crate::export::fd_store::{FdScope, NoFdStore};
use crate::export::open::open;
use crate::export::plan::ShapeHint;
use crate::layers::cow::CowError;
use crate::layers::cow::format::{self, CLUSTER};
use crate::layers::cow::map::Map;
use crate::layers::cow::overlay::diff_storage;
use crate::spec::{CowSpec, Spec};
use crate::storage::lock;

/// Longest piece that is copied at once.
const COPY_LEN: u64 = 1 << 20;

/// Writes what differs to the base and empties the diff; how many bytes that was. If it is
/// interrupted, it can be done again.
pub(crate) fn commit(spec: CowSpec) -> Result<u64, ExportError> {
    let CowSpec { base, diff: path, .. } = spec;
    let file = open_diff(&path)?;
    let layout = format::read(&file).map_err(|source| failed(&path, source))?;
    let base = open(base.writable(), ShapeHint::Reshaped)?;
    let shape = base.geometry();
    let unfit = if shape.size < layout.size {
        Some(CowError::SmallBase { diff: layout.size, base: shape.size })
    } else if shape.capabilities.read_only {
        Some(CowError::ReadOnlyBase)
    } else {
        None
    };
    if let Some(source) = unfit {
        return Err(failed(&path, source));
    }
    let (mut names, mut settings) = (Vec::new(), Vec::new());
    base.stored_fd_names("", &mut names);
    base.settings(&mut settings);
    let mut no_store = NoFdStore;
    let base = base.open_storage(&mut FdScope::new(&mut no_store, &names, &settings)?)?;
    let copied = Map::open(file)
        .and_then(|map| copy(&*base, &map, path.clone()).map_err(CowError::Access))
        .map_err(|source| failed(&path, source))?;
    discard(&path)?;
    Ok(copied)
}

/// Empties a diff.
pub(crate) fn discard(path: &Path) -> Result<(), ExportError> {
    let file = open_diff(path)?;
    let empty = || -> io::Result<()> {
        // An empty file is a new diff, and the file system makes it one at once.
        file.set_len(0)?;
        file.sync_all()
    };
    format::read(&file)
        .and_then(|_| empty().map_err(CowError::Access))
        .map_err(|source| failed(path, source))
}

fn open_diff(path: &Path) -> Result<File, ExportError> {
    let open = || -> Result<File, CowError> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CowError::Missing,
            _ => CowError::Open(error),
        })?;
        if file.metadata().map_err(CowError::Access)?.len() == 0 {
            return Err(CowError::Missing);
        }
        lock::lock(&file, false)?;
        Ok(file)
    };
    open().map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: CowError) -> ExportError {
    ExportError::Cow { path: path.into(), source }
}

/// Copies every cluster of the diff to the base, durably.
fn copy(base: &dyn Backend, map: &Map, path: PathBuf) -> io::Result<u64> {
    let layout = map.layout();
    let diff = diff_storage(map.file().try_clone()?, path, layout);
    let zeroes = base.geometry().capabilities.write_zeroes;
    let mut buffer = vec![0; COPY_LEN as usize];
    let mut copied = 0;
    map.runs(0, layout.size, |start, end, is_own| {
        let mut at = if is_own { start } else { end };
        while at < end {
            let extent = diff.extents(layout.data + at, (end - at).min(COPY_LEN), true)?;
            let length = extent.first().map_or(CLUSTER, |extent| extent.length);
            if zeroes && extent.first().is_some_and(|extent| extent.zero) {
                base.write_zeroes(at, length, ZeroOptions::default())?;
            } else {
                let data = &mut buffer[..length as usize];
                diff.read_at(data, layout.data + at)?;
                base.write_at(data, at, false)?;
            }
            copied += length;
            at += length;
        }
        io::Result::Ok(())
    })?;
    base.flush()?;
    Ok(copied)
}

impl Spec {
    /// The same to be written to.
    fn writable(self) -> Self {
        match self {
            Self::File(mut file) => {
                file.read_only = false;
                Self::File(file)
            }
            Self::Cow(mut cow) => {
                cow.read_only = false;
                Self::Cow(cow)
            }
            Self::Layer(mut layered) => {
                layered.inner = layered.inner.writable();
                Self::Layer(layered)
            }
            other => other,
        }
    }
}
