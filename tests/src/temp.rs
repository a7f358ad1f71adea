//! A directory that goes with its test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A fresh name in /tmp, which is memory in the virtual machine.
pub(crate) fn fresh_path() -> PathBuf {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/tmp/nbd-tests-{}-{number}", std::process::id()))
}

/// A directory in /tmp.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one.
    #[must_use]
    pub fn new() -> Self {
        let path = fresh_path();
        fs::create_dir(&path).expect("a temporary directory");
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a sparse file of so many bytes.
    #[must_use]
    pub fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.join(name);
        let file = File::create(&path).expect("an image");
        file.set_len(size).expect("room for an image");
        path
    }

    /// The same, as nbd-serve wants to be told of it.
    #[must_use]
    pub fn spec(&self, name: &str, size: u64) -> String {
        format!("file:{}", self.image(name, size).display())
    }
}

impl Default for TempDir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
