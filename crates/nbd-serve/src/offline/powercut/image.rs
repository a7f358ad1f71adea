//! The disk at a moment: what was flushed, and some of what was not.
//!
//! What is certain only grows from one moment to the next, so it is written to one image, of which
//! each crash image is a copy.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::crash_images::{self, CrashImage, Plan, SECTOR};
use super::error::PowercutError;
use crate::layers::write_log::{Entry, EntryKind, Reader};
use crate::storage::extents;

const COPY_LEN: usize = 1 << 20;

/// Makes images, one at a time.
pub(crate) struct Images<'a> {
    log: &'a Reader,
    plan: &'a Plan,
    certain: Scratch,
    /// How many entries are in it.
    applied: usize,
    copy: Scratch,
}

/// A file that goes when it is no longer needed.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl<'a> Images<'a> {
    pub(crate) fn new(
        log: &'a Reader,
        plan: &'a Plan,
        before: Option<&Path>,
        directory: &Path,
    ) -> Result<Self, PowercutError> {
        let name = |what| directory.join(format!("powercut-{}.{what}", std::process::id()));
        let (certain, copy) = (Scratch(name("certain")), Scratch(name("img")));
        let file = File::options().read(true).write(true).create_new(true).open(&certain.0);
        let file = file.map_err(|source| failed(&certain.0, source))?;
        file.set_len(log.size).map_err(|source| failed(&certain.0, source))?;
        if let Some(path) = before {
            let before = File::open(path).map_err(|source| failed(path, source))?;
            let found = before.metadata().map_err(|source| failed(path, source))?.len();
            if found != log.size {
                return Err(PowercutError::OtherSize { path: path.into(), found, size: log.size });
            }
            copy_data(&before, &file, log.size).map_err(|source| failed(path, source))?;
        }
        Ok(Self { log, plan, certain, applied: 0, copy })
    }

    /// Makes a crash image. They must come in the order of their points.
    pub(crate) fn make(&mut self, crash_image: CrashImage) -> Result<PathBuf, PowercutError> {
        let path = &self.certain.0;
        let make = || -> io::Result<usize> {
            let certain = crash_images::certain(&self.log.entries, crash_image.point);
            let file = File::options().read(true).write(true).open(path)?;
            for entry in &self.log.entries[self.applied.min(certain)..certain] {
                self.apply(&file, entry, |_| true)?;
            }
            let _ = fs::remove_file(&self.copy.0);
            let copy =
                File::options().read(true).write(true).create_new(true).open(&self.copy.0)?;
            copy.set_len(self.log.size)?;
            copy_data(&file, &copy, self.log.size)?;
            let rest = self.log.entries.iter().enumerate().take(crash_image.point).skip(certain);
            for (index, entry) in rest {
                self.apply(&copy, entry, |sector| {
                    self.plan.has(crash_image, index, entry, sector)
                })?;
            }
            Ok(certain)
        };
        self.applied = make().map_err(|source| failed(path, source))?;
        Ok(self.copy.0.clone())
    }

    /// Does to an image what an entry did to the disk, as far as `has` says that it got there.
    fn apply(&self, image: &File, entry: &Entry, has: impl Fn(u64) -> bool) -> io::Result<()> {
        if entry.kind == EntryKind::Flush {
            return Ok(());
        }
        let mut buffer = vec![0; COPY_LEN.min(entry.length as usize)];
        let mut at = 0;
        while at < entry.length {
            let piece = &mut buffer[..(entry.length - at).min(COPY_LEN as u64) as usize];
            if entry.kind == EntryKind::Write {
                self.log.data(entry, at, piece)?;
            }
            for (number, sector) in (at / SECTOR..).zip(piece.chunks(SECTOR as usize)) {
                if has(number) {
                    image.write_all_at(sector, entry.offset + number * SECTOR)?;
                }
            }
            at += piece.len() as u64;
        }
        Ok(())
    }
}

fn failed(path: &Path, source: io::Error) -> PowercutError {
    PowercutError::File { path: path.into(), source }
}

/// Copies a file to a new one, and leaves holes where it has holes.
fn copy_data(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_LEN];
    let mut start = 0;
    for extent in extents::of_file(from, 0, size, usize::MAX)? {
        let end = start + extent.length;
        while !extent.zero && start < end {
            let piece = &mut buffer[..(end - start).min(COPY_LEN as u64) as usize];
            from.read_exact_at(piece, start)?;
            to.write_all_at(piece, start)?;
            start += piece.len() as u64;
        }
        start = end;
    }
    Ok(())
}
