//! The file with a holder's state, which can be written although its file system has become full.
//!
//! Two files take turns, `state.json` and `state.new`, and both keep the blocks that they were given
//! when the device was attached. A new state is written over the older one of the two; then
//! `renameat2(2)` exchanges their names in one step, which needs no room either. A process that
//! dies in between leaves `state.json` as it was.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// What readers look at.
const CURRENT: &str = "state.json";
/// What the next state is written to.
const NEXT: &str = "state.new";
/// Bytes that each of both keeps, most of them for the program's arguments and the history.
const RESERVED_BYTES: usize = 32 << 10;
/// How often a state that changes under its reader is read again.
const MAX_READ_ATTEMPTS: usize = 100;

/// The file that readers look at.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join(CURRENT)
}

/// Takes the room for all states to come. Until the first one is written, there is none to read.
pub(crate) fn reserve(folder: &Path) -> io::Result<()> {
    for name in [CURRENT, NEXT] {
        keep_room(&open(&folder.join(name))?, RESERVED_BYTES)?;
    }
    Ok(())
}

/// Replaces the state, all of it or nothing.
pub(crate) fn write(folder: &Path, text: &[u8]) -> io::Result<()> {
    let next = folder.join(NEXT);
    let file = open(&next)?;
    keep_room(&file, text.len().max(RESERVED_BYTES))?;
    // To cut the file off would give its blocks back. What is too long becomes blank lines, which
    // are nothing to a reader of JSON.
    let mut padded = text.to_vec();
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    padded.resize(length.max(text.len()), b'\n');
    file.write_all_at(&padded, 0)?;
    publish(&next, &path(folder))
}

/// The state, if there is one.
pub(crate) fn read(folder: &Path) -> io::Result<Option<Vec<u8>>> {
    let path = path(folder);
    let read = || match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    };
    // A file that is opened here may become the next one to be written to while it is read. Then
    // what was read is the beginning of one state and the end of another, and a second look differs.
    let mut text = read()?;
    for _ in 0..MAX_READ_ATTEMPTS {
        let again = read()?;
        if again == text {
            return Ok(Some(text).filter(|text| !text.is_empty()));
        }
        text = again;
    }
    Err(io::Error::other("it changes faster than it can be read"))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
}

/// Gives the file its blocks; those that it has already stay.
fn keep_room(file: &File, length: usize) -> io::Result<()> {
    let length = length.try_into().map_err(io::Error::other)?;
    loop {
        return match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
            Err(Errno::EINTR) => continue,
            // The file system has no such call: then room is found when it is needed, or not.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            result => Ok(result?),
        };
    }
}

fn publish(next: &Path, current: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    // With musl `nix` lacks this call.
    match renameat_with(CWD, next, CWD, current, RenameFlags::EXCHANGE) {
        // There is no current one, or the file system cannot exchange.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => std::fs::rename(next, current),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("nbd-state-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_reserved_state_is_none_until_the_first_is_written() {
        let folder = Folder::new("first");
        assert_eq!(read(&folder.0).unwrap(), None);
        reserve(&folder.0).unwrap();
        assert_eq!(read(&folder.0).unwrap(), None);
        write(&folder.0, b"{\"a\": 1234}").unwrap();
        assert_eq!(read(&folder.0).unwrap().unwrap(), b"{\"a\": 1234}");
    }

    #[test]
    fn both_files_keep_their_blocks_whatever_is_written() {
        let folder = Folder::new("blocks");
        reserve(&folder.0).unwrap();
        let files = || [CURRENT, NEXT].map(|name| folder.0.join(name).metadata().unwrap());
        let reserved = files().map(|file| file.blocks());
        let inodes = files().map(|file| file.ino());
        if reserved[0] == 0 {
            // This file system cannot reserve.
            return;
        }
        for length in [3000, 10, 20_000, 1, 2000] {
            write(&folder.0, &vec![b'1'; length]).unwrap();
            let text = read(&folder.0).unwrap().unwrap();
            assert_eq!(text.trim_ascii_end().len(), length);
            assert_eq!(files().map(|file| file.blocks()), reserved);
        }
        let mut now = files().map(|file| file.ino());
        now.reverse();
        assert_eq!(now, inodes, "after an odd number of writes they have changed places");
    }

    #[test]
    fn a_reader_never_sees_two_states_in_one() {
        let folder = Folder::new("torn");
        reserve(&folder.0).unwrap();
        write(&folder.0, b"0").unwrap();
        let path = folder.0.clone();
        let writer = std::thread::spawn(move || {
            for round in 0..3000u32 {
                let digit = b'0' + u8::try_from(round % 10).unwrap();
                let length = 4000 + (round as usize * 37) % 9000;
                write(&path, &vec![digit; length]).unwrap();
            }
        });
        while !writer.is_finished() {
            let text = read(&folder.0).unwrap().unwrap();
            let text = text.trim_ascii_end();
            assert!(text.iter().all(|byte| *byte == text[0]));
        }
        writer.join().unwrap();
    }
}
