//! Which parts of a file are allocated, as the file system tells.

use std::fs::File;
use std::io;

use nbd_backend::Extent;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

const DATA: Extent = Extent { length: 0, hole: false, zero: false };
const HOLE: Extent = Extent { length: 0, hole: true, zero: true };

/// The extents of a range, at most `most` of them. A file system that does not tell has data
/// everywhere. Moves the file's position, which nobody here uses.
pub(crate) fn of_file(
    file: &File,
    offset: u64,
    length: u64,
    most: usize,
) -> io::Result<Vec<Extent>> {
    let end = offset + length;
    let mut extents = Vec::new();
    let mut position = offset;
    while position < end && extents.len() < most {
        // Where the file system does not know, everything is data.
        let data = seek(file, position, Whence::SeekData, position)?.clamp(position, end);
        if data > position {
            extents.push(Extent { length: data - position, ..HOLE });
            position = data;
            continue;
        }
        // There is a hole behind the end of every file. One that is at our feet was data a moment
        // ago; whatever it is now, progress has to be made.
        let hole = seek(file, position, Whence::SeekHole, end)?;
        let hole = if hole > position { hole.min(end) } else { end };
        extents.push(Extent { length: hole - position, ..DATA });
        position = hole;
    }
    Ok(extents)
}

/// Where the next data or hole begins, if not far behind everything.
fn seek(file: &File, position: u64, whence: Whence, unknown: u64) -> io::Result<u64> {
    match lseek(file, position as i64, whence) {
        Ok(found) => Ok(found as u64),
        Err(Errno::ENXIO) => Ok(u64::MAX),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(unknown),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::testing::Directory;

    const PAGE: u64 = 4096;

    fn file(directory: &Directory) -> File {
        let path = directory.file("sparse", 10 * PAGE);
        let file = File::options().read(true).write(true).open(path).unwrap();
        file.write_all_at(&[1; PAGE as usize], 2 * PAGE).unwrap();
        file.write_all_at(&[1; 2 * PAGE as usize], 5 * PAGE).unwrap();
        file
    }

    fn hole(length: u64) -> Extent {
        Extent { length, ..HOLE }
    }

    fn data(length: u64) -> Extent {
        Extent { length, ..DATA }
    }

    #[test]
    fn holes_and_data_alternate() {
        let directory = Directory::new();
        let extents = of_file(&file(&directory), 0, 10 * PAGE, 100).unwrap();
        let (hole, data) = (|pages| hole(pages * PAGE), |pages| data(pages * PAGE));
        assert_eq!(extents, [hole(2), data(1), hole(2), data(2), hole(3)]);
    }

    #[test]
    fn a_range_may_begin_and_end_anywhere() {
        let directory = Directory::new();
        let extents = of_file(&file(&directory), 2 * PAGE + 7, PAGE, 100).unwrap();
        assert_eq!(extents, [data(PAGE - 7), hole(7)]);
    }

    #[test]
    fn no_more_extents_than_asked_for() {
        let directory = Directory::new();
        assert_eq!(of_file(&file(&directory), 0, 10 * PAGE, 1).unwrap(), [hole(2 * PAGE)]);
    }

    #[test]
    fn what_lies_behind_the_end_of_the_file_is_a_hole() {
        let directory = Directory::new();
        let file = file(&directory);
        file.set_len(PAGE).unwrap();
        assert_eq!(of_file(&file, 0, 4 * PAGE, 9).unwrap(), [hole(4 * PAGE)]);
    }
}
