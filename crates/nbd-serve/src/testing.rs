//! What the unit tests share.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::spec::Spec;
use crate::storage::file::FileExport;
use crate::storage::file_reuse;
use crate::storage::probe::{self, Probe, ProbeError};

/// A directory that is removed with all that is in it.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-serve-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A sparse file.
    pub(crate) fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        fs::File::create_new(&path).unwrap().set_len(size).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}

/// What a specification names.
pub(crate) fn probe(text: &str) -> Result<Probe, ProbeError> {
    match Spec::parse(OsStr::new(text)) {
        Ok(Spec::File(spec)) => probe::probe(spec),
        other => panic!("{text}: {other:?}"),
    }
}

/// Opens a file as the first backend of a device does.
pub(crate) fn serve(text: &str) -> FileExport {
    let mut probe = probe(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let file = file_reuse::first(&mut probe).unwrap_or_else(|error| panic!("{text}: {error}"));
    let Probe { spec, kind, geometry, .. } = probe;
    FileExport::new(file, spec.path, kind, spec.direct, geometry)
}

/// Bytes of which no two neighbouring blocks are alike.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add((at / 512) as u8).wrapping_add(at as u8)).collect()
}
