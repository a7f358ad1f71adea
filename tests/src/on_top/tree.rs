//! A tree of files to copy, and comparing two of them byte by byte.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::command::run;
use crate::random::Random;

const FOLDERS: usize = 40;
const FILES: usize = 55;

/// What a tree has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Files, not counting directories and links.
    pub files: usize,
    /// Bytes in them.
    pub bytes: u64,
}

/// Makes a tree of 2,200 files and some 45 MiB: many small ones, some empty, some large.
pub fn make(root: &Path) -> Size {
    let mut random = Random::by_clock();
    let noise = random.bytes(1 << 20);
    let mut size = Size::default();
    for folder in 0..FOLDERS {
        let place = match folder % 4 {
            0 => root.join(format!("folder {folder}")),
            n => root.join(format!("folder-{folder}")).join("deep".repeat(n)),
        };
        fs::create_dir_all(&place).expect("a folder");
        for file in 0..FILES {
            let length = match random.number() % 100 {
                0..5 => 0,
                5..60 => random.within(&(1..=4096)),
                60..95 => random.within(&(4097..=50_000)),
                _ => random.within(&(50_001..=400_000)),
            };
            let from = random.within(&(0..=noise.len() as u64 - length)) as usize;
            let content = &noise[from..from + length as usize];
            fs::write(place.join(format!("file-{file}")), content).expect("a file");
            size.files += 1;
            size.bytes += length;
        }
        let link = std::os::unix::fs::symlink("file-1", place.join("link"));
        link.expect("a link");
    }
    size
}

/// Panics unless both trees have the same names with the same content.
#[track_caller]
pub fn compare(left: &Path, right: &Path) {
    let options = ["--recursive", "--no-dereference"].map(OsStr::new);
    let paths = [left.as_os_str(), right.as_os_str()];
    run("diff", options.into_iter().chain(paths)).succeeds();
}
