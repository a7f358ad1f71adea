//! Reading and writing: a file, a block device, or memory, which is a file too.

mod remains;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nbd_backend::{
    Backend, Command, Extent, Geometry, InlineBackend, MappedBackend, MappedRange, ZeroOptions, now,
};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};

use crate::storage::aligned;
use crate::storage::extents;
use crate::storage::pagecache_map::PagecacheMap;
use crate::storage::system;
use crate::storage::tmpfs_map::TmpfsMap;
use crate::storage::write_latency::WriteLatency;

/// Longest command that the lane's own thread executes: while it does, the others wait.
const MAX_INLINE_LEN: u64 = 1 << 20;
/// Writing a part of a page may mean to read the rest of it first.
const PAGE: u64 = 4096;

/// How long a file that had its whole size is believed to have it, in nanoseconds.
const SIZE_TRUSTED_NS: u64 = 1_000_000;

/// Most extents in one answer; whoever asked asks on from there.
const MAX_EXTENTS: usize = 1024;

/// `linux/magic.h`; nix does not have it.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// What is behind a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// It can be truncated while we use it.
    Regular,
    Device,
    /// Never slow, never durable, sealed against truncation.
    Memory,
}

/// A file that serves as a block device.
#[derive(Debug)]
pub(crate) struct FileExport {
    file: File,
    /// For messages.
    path: PathBuf,
    kind: FileKind,
    /// Whether the file is open for direct I/O.
    direct: bool,
    geometry: Geometry,
    write_latency: WriteLatency,
    /// A file system of memory, where no read waits and the kernel does not know RWF_NOWAIT.
    in_memory: bool,
    /// Until the kernel says that it does not know RWF_NOWAIT here.
    can_read_nowait: AtomicBool,
    /// Until the kernel says that it does not know RWF_DSYNC here.
    can_write_durably: AtomicBool,
    /// When the file had its whole size last.
    whole_at: AtomicU64,
    /// What is in a file system of memory: mapped with the first command, after the engine has
    /// locked its own.
    tmpfs_map: OnceLock<Option<TmpfsMap>>,
    /// All else, unless it is open for direct I/O.
    pagecache_map: OnceLock<Option<PagecacheMap>>,
}

impl FileExport {
    pub(crate) fn new(
        file: File,
        path: PathBuf,
        kind: FileKind,
        direct: bool,
        geometry: Geometry,
    ) -> Self {
        let in_memory = match kind {
            FileKind::Memory => true,
            FileKind::Regular => !direct && is_in_memory(&file),
            _ => false,
        };
        Self {
            file,
            in_memory,
            path,
            kind,
            direct,
            geometry,
            write_latency: WriteLatency::default(),
            can_read_nowait: AtomicBool::new(!direct),
            can_write_durably: AtomicBool::new(kind != FileKind::Memory),
            whole_at: AtomicU64::new(0),
            tmpfs_map: OnceLock::new(),
            pagecache_map: OnceLock::new(),
        }
    }

    /// Memory that may be reached without system calls. Without it all goes the longer way.
    fn memory(&self) -> Option<&TmpfsMap> {
        if self.kind == FileKind::Memory { self.tmpfs_map() } else { None }
    }

    /// A file in a file system of memory. Others may cut it off, unless it is memory of ours.
    fn tmpfs_map(&self) -> Option<&TmpfsMap> {
        let size = self.geometry.size;
        let map = || match self.kind {
            FileKind::Memory => TmpfsMap::sealed(&self.file, size).ok(),
            _ => TmpfsMap::unsealed(&self.file, size, !self.geometry.capabilities.read_only).ok(),
        };
        self.tmpfs_map.get_or_init(map).as_ref()
    }

    /// The same, if it was needed before: else there is nothing to note or to forget.
    fn tmpfs_map_before(&self) -> Option<&TmpfsMap> {
        self.tmpfs_map.get()?.as_ref()
    }

    fn pagecache_map(&self) -> Option<&PagecacheMap> {
        self.pagecache_map
            .get_or_init(|| PagecacheMap::new(&self.file, self.geometry.size))
            .as_ref()
    }

    /// A range was written by a system call.
    fn note(&self, offset: u64, length: usize) {
        if let Some(tmpfs_map) = self.tmpfs_map_before() {
            tmpfs_map.note(offset, length);
        }
    }

    fn write_memory(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.memory().is_some_and(|memory| memory.write(data, offset)) {
            return Ok(());
        }
        self.file.write_all_at(data, offset)?;
        self.note(offset, data.len());
        Ok(())
    }

    fn read_once(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| self.check_end(end).err().unwrap_or(error))
    }

    fn write_once(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        if !fua || self.kind == FileKind::Memory {
            return self.file.write_all_at(data, offset);
        }
        let mut done = 0;
        while done < data.len() && self.can_write_durably.load(Ordering::Relaxed) {
            match system::write_durably(&self.file, &data[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_unsupported(&error) => {
                    self.can_write_durably.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        if done < data.len() {
            self.file.write_all_at(&data[done..], offset + done as u64)?;
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn allocate(&self, mode: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        if let Some(tmpfs_map) = self.tmpfs_map_before() {
            tmpfs_map.forget(offset, length);
        }
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            match fallocate(&self.file, mode, offset as i64, length as i64) {
                Err(Errno::EINTR) => {}
                other => return other.map_err(Into::into),
            }
        }
    }

    fn write_zeroes_by_hand(&self, mut offset: u64, length: u64) -> io::Result<()> {
        self.check_end(offset + length)?;
        let end = offset + length;
        aligned::with_buffer(length.min(aligned::MAX_BUFFER_LEN as u64) as usize, |zeroes| {
            zeroes.fill(0);
            while offset < end {
                let count = (zeroes.len() as u64).min(end - offset);
                self.write_once(&zeroes[..count as usize], offset, false)?;
                offset += count;
            }
            Ok(())
        })
    }

    fn sync_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }
}

impl Backend for FileExport {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        if self.memory().is_some_and(|memory| memory.read(buffer, offset)) {
            return Ok(());
        }
        if !self.direct || aligned::is_aligned(buffer) {
            return self.read_once(buffer, offset);
        }
        for piece in buffer.chunks_mut(aligned::MAX_BUFFER_LEN) {
            aligned::with_buffer(piece.len(), |data| {
                self.read_once(data, offset)?;
                piece.copy_from_slice(data);
                io::Result::Ok(())
            })?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], mut offset: u64, fua: bool) -> io::Result<()> {
        if self.kind == FileKind::Memory {
            return self.write_memory(data, offset);
        }
        let end = offset + data.len() as u64;
        if !self.direct {
            let begun = now();
            self.check_end_at(end, begun)?;
            let written = self.write_once(data, offset, fua);
            if written.is_ok() {
                self.note(offset, data.len());
            }
            if !fua {
                self.write_latency.took(Duration::from_nanos(now().saturating_sub(begun)));
            }
            return written;
        }
        self.check_end(end)?;
        if aligned::is_aligned(data) {
            return self.write_once(data, offset, fua);
        }
        for piece in data.chunks(aligned::MAX_BUFFER_LEN) {
            aligned::with_buffer(piece.len(), |copy| {
                copy.copy_from_slice(piece);
                self.write_once(copy, offset, fua)
            })?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// The descriptor is the one that every predecessor wrote through, so an error that the
    /// kernel met in writing back is reported here even if it met it before our time.
    fn flush(&self) -> io::Result<()> {
        match self.kind {
            FileKind::Memory => Ok(()),
            FileKind::Regular | FileKind::Device => self.file.sync_data(),
        }
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        if length > 0 {
            let trimmed = match self.kind {
                // Punching a hole into a device writes zeroes; that is more than was asked for.
                FileKind::Device => system::discard(&self.file, offset, length),
                _ => self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, length),
            };
            match trimmed {
                // It was a hint.
                Err(error) if is_unsupported(&error) => {}
                other => other?,
            }
            self.check_changed(offset + length)?;
        }
        self.sync_if(fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        if length > 0 {
            let mode = if how.no_hole {
                FallocateFlags::FALLOC_FL_ZERO_RANGE
            } else {
                FallocateFlags::FALLOC_FL_PUNCH_HOLE
            };
            // Where a device cannot zero a range, the kernel writes it, without saying so.
            let is_secretly_slow = how.fast_only && how.no_hole && self.kind == FileKind::Device;
            let zeroed = if is_secretly_slow {
                Err(io::ErrorKind::Unsupported.into())
            } else {
                self.allocate(mode, offset, length)
            };
            match zeroed {
                Err(error) if is_unsupported(&error) && !how.fast_only => {
                    self.write_zeroes_by_hand(offset, length)?;
                }
                Err(error) if is_unsupported(&error) => {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                other => other?,
            }
            self.check_changed(offset + length)?;
        }
        self.sync_if(how.fua)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.kind != FileKind::Memory && !self.direct && length > 0 {
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            // It was a hint.
            let _ = posix_fadvise(&self.file, offset as i64, length as i64, advice);
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        if self.kind == FileKind::Device {
            return Ok(vec![Extent { length, hole: false, zero: false }]);
        }
        let most = if one { 1 } else { MAX_EXTENTS };
        self.keep_present(offset, extents::of_file(&self.file, offset, length, most)?)
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        Some(self)
    }

    fn as_mapped(&self) -> Option<&dyn MappedBackend> {
        (!self.direct).then_some(self)
    }
}

impl InlineBackend for FileExport {
    fn never_blocks(&self, command: &Command) -> bool {
        let (offset, length) = command.range();
        if length > MAX_INLINE_LEN {
            return false;
        }
        match command {
            _ if self.in_memory => true,
            Command::Write { fua: false, .. } => {
                !self.direct
                    && (offset | length).is_multiple_of(PAGE)
                    && self.write_latency.is_fast()
            }
            _ => false,
        }
    }

    fn may_block_inline(&self, command: &Command) -> bool {
        let waits =
            matches!(command, Command::Read { .. } | Command::Write { .. } | Command::Flush);
        waits && command.range().1 <= MAX_INLINE_LEN
    }

    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        if !self.can_read_nowait.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match system::read_cached(&self.file, buffer, offset) {
            Ok(count) => Ok(count == buffer.len()),
            Err(error) => {
                if is_unsupported(&error) {
                    self.can_read_nowait.store(false, Ordering::Relaxed);
                }
                // Whatever it is, a worker meets it again and has the time to deal with it.
                Ok(false)
            }
        }
    }
}

impl MappedBackend for FileExport {
    /// Not of a file that was cut off: its last page is mapped as a whole, and what lies behind the end
    /// reads as zeroes there.
    fn mapped_range(&self, offset: u64, length: u32) -> Option<MappedRange> {
        self.check_end_at(offset + u64::from(length), now()).ok()?;
        match self.in_memory {
            true => self.tmpfs_map()?.range(offset, length as usize),
            false => self.pagecache_map()?.range(offset, length as usize),
        }
    }

    /// The same: what is written behind the end goes nowhere.
    fn mapped_range_mut(&self, offset: u64, length: u32) -> Option<MappedRange> {
        if !self.in_memory {
            return None;
        }
        self.check_received().ok()?;
        self.tmpfs_map()?.range_mut(offset, length as usize)
    }

    /// A truncated file may have grown back since, but not to its old size.
    fn check_received(&self) -> io::Result<()> {
        self.check_end(self.geometry.size).map(drop)
    }

    fn prefetch(&self, offset: u64, length: u32) {
        if let Some(map) = self.tmpfs_map_before() {
            map.prefetch(offset, length as usize);
        }
    }
}

fn is_in_memory(file: &File) -> bool {
    let known = [TMPFS_MAGIC, RAMFS_MAGIC];
    fstatfs(file).is_ok_and(|found| known.contains(&found.filesystem_type()))
}

/// The kernel, the file system or the device does not know how. Old kernels call an unknown flag
/// of preadv2 unsupported, too, and lack the call altogether before 4.6.
fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY))
}
