//! `cow:BASE+DIFF`: a base that is only read, and a sparse file that has what differs from it.
//!
//! | module | idea |
//! |---|---|
//! | `format` | where what is in the file |
//! | `map` | which clusters are in the diff, and since when that is durable |
//! | `overlay` | reading and writing |
//! | `commit` | the end of a diff: into the base, or away |

pub(crate) mod commit;
mod format;
mod map;
mod overlay;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_backend::{Backend, Capabilities, Geometry};
use nbd_control::settings::Setting;
use thiserror::Error;

use crate::adopt;
use crate::estate::Estate;
use crate::export::ExportError;
use crate::file::{FileExport, Kind};
use crate::lock::{self, LockError};
use crate::size::Size;
use crate::source::{self, Known, Source};
use crate::spec::CowSpec;

use format::Layout;
use map::Map;
use overlay::Overlay;

/// The name under which the holder keeps the diff; what is below has it in front.
const KEEPSAKE: &str = "diff";
const BASE: &str = "base";

/// Why a diff cannot be used.
#[derive(Debug, Error)]
pub(crate) enum CowError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    #[error("cannot be made")]
    Make(#[source] io::Error),
    #[error("cannot be read or written")]
    Access(#[source] io::Error),
    #[error(
        "is no diff of this program (write cow:BASE+DIFF, with the diff last): it stays as it is"
    )]
    Foreign,
    #[error("was made by a newer version of this program")]
    Newer,
    #[error("does not exist, so there is nothing to commit or discard")]
    Missing,
    #[error("belongs to a base of {}, and this one has only {}", Size(*.diff), Size(*.base))]
    SmallBase { diff: u64, base: u64 },
    #[error("is not the diff that was attached: detach the device first, or put that one back")]
    OtherFile,
    #[error("the base cannot be written to")]
    ReadOnlyBase,
    #[error("cannot tell whether the machine was restarted (/proc/sys/kernel/random/boot_id)")]
    Boot(#[source] io::Error),
}

/// A base and a diff that may be there or not.
#[derive(Debug)]
pub(crate) struct CowSource {
    base: Box<dyn Source>,
    diff: PathBuf,
    read_only: bool,
    geometry: Geometry,
}

impl CowSource {
    /// Looks at both. Nothing is made or locked by that.
    pub(crate) fn open(spec: CowSpec) -> Result<Self, ExportError> {
        let CowSpec { base, diff, read_only } = spec;
        let base = source::open(base, Known::Reshaped)?;
        let below = base.geometry();
        let known = match peek(&diff) {
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

    fn open_diff(&self, estate: &mut Estate<'_>) -> Result<Result<File, CowError>, ExportError> {
        if let Some(kept) = estate.inherit(KEEPSAKE)? {
            return Ok(check(&self.diff, &kept).map(|()| kept));
        }
        let file = match first(&self.diff, self.geometry.size, self.read_only) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        estate.keep(KEEPSAKE, &file)?;
        Ok(Ok(file))
    }
}

impl Source for CowSource {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn agree(&mut self, size: u64) {
        self.geometry.size = self.geometry.size.min(size);
    }

    fn peek(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(file) = File::open(&self.diff).ok().filter(|_| !is_new(&self.diff)) else {
            return self.base.peek(buffer, offset);
        };
        let map = Map::look(file).map_err(io::Error::other)?;
        map.runs(offset, offset + buffer.len() as u64, |start, end, is_own| {
            let piece = &mut buffer[(start - offset) as usize..(end - offset) as usize];
            if is_own {
                map.file().read_exact_at(piece, map.layout().data + start)
            } else {
                self.base.peek(piece, start)
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

    fn examine(&mut self, estate: &mut Estate<'_>) -> Result<(), ExportError> {
        if let Some(kept) = estate.inherit(KEEPSAKE)? {
            let path = self.diff.clone();
            check(&self.diff, &kept).map_err(|source| ExportError::Cow { path, source })?;
        }
        estate.within(BASE, |estate| self.base.examine(estate))
    }

    fn settle(self: Box<Self>, estate: &mut Estate<'_>) -> Result<Arc<dyn Backend>, ExportError> {
        let opened = self
            .open_diff(estate)?
            .and_then(|file| if self.read_only { Map::look(file) } else { Map::open(file) });
        let Self { base, diff: path, geometry, .. } = *self;
        let map = match opened {
            Ok(map) => map,
            Err(source) => return Err(ExportError::Cow { path, source }),
        };
        let base = estate.within(BASE, |estate| base.settle(estate))?;
        let overlay = Overlay::new(base, path.clone(), map, geometry)
            .map_err(|error| ExportError::Cow { path, source: CowError::Access(error) })?;
        Ok(Arc::new(overlay))
    }

    fn tell(&self) {
        self.base.tell();
    }
}

fn is_new(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |metadata| metadata.len() == 0)
}

/// What a diff says of itself; nothing if it is yet to be made.
fn peek(path: &Path) -> Result<Option<Layout>, CowError> {
    match File::open(path) {
        Ok(_) if is_new(path) => Ok(None),
        Ok(file) => format::read(&file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CowError::Open(error)),
    }
}

/// Locks a diff that nobody has served before, and makes it if there is none.
fn first(path: &Path, size: u64, read_only: bool) -> Result<File, CowError> {
    let mut options = File::options();
    // What differs has the same secrets as the whole.
    options.read(true).write(!read_only).create(!read_only).mode(0o600);
    let file = options.open(path).map_err(CowError::Open)?;
    lock::lock(&file, read_only)?;
    if !read_only {
        make(&file, path, size).map_err(CowError::Make)?;
    }
    format::read(&file)?;
    Ok(file)
}

/// Makes an empty file a diff, and finishes one that somebody has only begun to make.
fn make(file: &File, path: &Path, size: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length == 0 {
        format::write(file, &Layout::of(size))?;
    }
    if let Ok(layout) = format::read(file)
        && length < layout.end()
    {
        file.set_len(layout.end())?;
        file.sync_all()?;
        adopt::sync_directory(path)?;
    }
    Ok(())
}

/// Checks that a keepsake is what the path names.
fn check(path: &Path, kept: &File) -> Result<(), CowError> {
    let left = kept.metadata().map_err(CowError::Access)?;
    match fs::metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (left.dev(), left.ino()) => Ok(()),
        Ok(_) => Err(CowError::OtherFile),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(
                "{}: no longer exists; the device goes on with the deleted diff until \
                 it is detached",
                path.display()
            );
            Ok(())
        }
        Err(error) => Err(CowError::Open(error)),
    }
}

/// The file of a diff as something to read from and write to.
fn storage(file: File, path: PathBuf, layout: &Layout) -> FileExport {
    let geometry = Geometry {
        size: layout.end(),
        block_size: format::CLUSTER as u32,
        capabilities: Capabilities::default(),
    };
    FileExport::new(file, path, Kind::Regular, false, geometry)
}
