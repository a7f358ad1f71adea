//! What is left of a file that was cut off, or of a device that shrank, while it is served.
//!
//! What is gone cannot be read. So nothing may be said of it that a copying tool would take for
//! data: neither that it is zero, nor that it has been made zero.

use std::io;
use std::sync::atomic::Ordering;

use nbd_backend::Extent;
use nix::unistd::{Whence, lseek};

use super::{FileExport, FileKind, SIZE_TRUSTED_NS};

impl FileExport {
    /// How many bytes there are now.
    fn present_size(&self) -> io::Result<u64> {
        match self.kind {
            FileKind::Memory => Ok(self.geometry.size),
            FileKind::Regular => Ok(self.file.metadata()?.len()),
            // The position is moved by that, and not used by any other code.
            FileKind::Device => Ok(lseek(&self.file, 0, Whence::SeekEnd)? as u64),
        }
    }

    fn cut_off(&self, size: u64) -> io::Error {
        io::Error::other(format!(
            "{} was truncated while it was served: it has {size} bytes instead of {}; what was \
             cut off is lost, so detach the device",
            self.path.display(),
            self.geometry.size
        ))
    }

    /// Fails if a range ends behind the end of what there is. The kernel makes holes there with
    /// success: in a file, as that keeps its size; in a device, as it cuts the range to what there
    /// is. Called after the deed: what is cut off later than that was zero until then.
    pub(super) fn check_changed(&self, end: u64) -> io::Result<()> {
        let size = self.present_size()?;
        if end <= size { Ok(()) } else { Err(self.cut_off(size)) }
    }

    /// Shortens a description of the range from `offset` to what there is, and fails if that is
    /// nothing. Called after the file system was asked: it calls holes what lies behind the end.
    pub(super) fn keep_present(
        &self,
        offset: u64,
        mut extents: Vec<Extent>,
    ) -> io::Result<Vec<Extent>> {
        let size = self.present_size()?;
        let mut left = size.saturating_sub(offset);
        extents.retain_mut(|extent| {
            extent.length = extent.length.min(left);
            left -= extent.length;
            extent.length > 0
        });
        if extents.is_empty() { Err(self.cut_off(size)) } else { Ok(extents) }
    }

    /// Fails if a range ends behind the end of the file. A write there would make the file grow
    /// back, and what was cut off would then read as zeroes as if nothing had happened. Returns the
    /// file's size, if it matters.
    pub(super) fn check_end(&self, end: u64) -> io::Result<u64> {
        if self.kind != FileKind::Regular {
            return Ok(self.geometry.size);
        }
        let size = self.present_size()?;
        if size < self.geometry.size {
            self.whole_at.store(0, Ordering::Relaxed);
        }
        if end <= size { Ok(size) } else { Err(self.cut_off(size)) }
    }

    /// The same, without asking for the size before each write: where it was right a moment ago, it
    /// is believed. A write in that moment may make a truncated file grow, but never to its old
    /// size, since the one that ends there always asks; so the next question finds it out.
    pub(super) fn check_end_at(&self, end: u64, now: u64) -> io::Result<()> {
        let age = now.wrapping_sub(self.whole_at.load(Ordering::Relaxed));
        if self.kind != FileKind::Regular || age < SIZE_TRUSTED_NS && end < self.geometry.size {
            return Ok(());
        }
        if self.check_end(end)? >= self.geometry.size {
            self.whole_at.store(now, Ordering::Relaxed);
        }
        Ok(())
    }
}
