//! A small runtime directory that can be filled up.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use nbd_control::registry::DEFAULT_DIRECTORY;

use crate::mount::Mount;

/// The runtime directory in a small memory file system of its own.
#[derive(Debug)]
pub struct SmallRun {
    mount: Mount,
}

impl SmallRun {
    /// Mounts it. Nothing may be attached.
    #[track_caller]
    #[must_use]
    pub fn new() -> Self {
        Self { mount: Mount::of_memory("size=1M,mode=755", Path::new(DEFAULT_DIRECTORY)) }
    }

    /// Leaves no room.
    #[track_caller]
    pub fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(filler()).expect("a file");
        // In pages, so that not even one is left.
        while filler.write_all(&[b'x'; 4096]).is_ok() {}
        assert!(fs::write(filler_of_nothing(), "x").is_err(), "there is room left");
        fs::remove_file(filler_of_nothing()).expect("a file to remove");
    }

    /// Makes room again.
    #[track_caller]
    pub fn make_room(&self) {
        fs::remove_file(filler()).expect("a file to remove");
    }

    /// Unmounts it.
    #[track_caller]
    pub fn end(self) {
        self.mount.unmount();
    }
}

impl Default for SmallRun {
    fn default() -> Self {
        Self::new()
    }
}

fn filler() -> PathBuf {
    Path::new(DEFAULT_DIRECTORY).join("filler")
}

fn filler_of_nothing() -> PathBuf {
    Path::new(DEFAULT_DIRECTORY).join("one-more")
}
