//! Writing to stderr without waiting for its reader.
//!
//! Stderr may be a pipe: of a holder, which may be dead or stopped, or of a program like `tee`. A
//! full pipe would stop the thread that has something to say, and with it the requests that it
//! serves. So a pipe is opened once more, for this process alone, and what does not fit is counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

/// Stderr, whatever that is at the moment.
#[derive(Debug, Default)]
pub(crate) struct Stderr {
    pipe: Option<Pipe>,
    lost: AtomicU64,
}

/// A description of our own: O_NONBLOCK on the common one would surprise our children.
#[derive(Debug)]
struct Pipe {
    file: File,
    device: u64,
    inode: u64,
}

impl Pipe {
    /// That behind stderr, if it is one.
    fn open() -> Option<Self> {
        let stat = fstat(io::stderr().as_fd()).ok()?;
        let is_pipe = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO;
        if !is_pipe {
            return None;
        }
        let flags = (OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
        let file = OpenOptions::new().write(true).custom_flags(flags).open("/proc/self/fd/2");
        Some(Self { file: file.ok()?, device: stat.st_dev, inode: stat.st_ino })
    }

    fn is_stderr(&self) -> bool {
        let stat = fstat(io::stderr().as_fd());
        stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (self.device, self.inode))
    }
}

impl Stderr {
    /// Without `stays` no description of what it is now is opened.
    pub(crate) fn new(stays: bool) -> Self {
        Self { pipe: stays.then(Pipe::open).flatten(), lost: AtomicU64::new(0) }
    }

    /// Writes a line with one call, so that lines of several processes in one place stay whole;
    /// and past the lock of the standard library, which another thread may have held when this
    /// process was forked.
    pub(crate) fn write_line(&self, program: &str, line: &str) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let note = format!("{program}: {lost} lines are missing here: stderr was full\n");
            if !self.write(&note) {
                self.lost.fetch_add(lost + 1, Ordering::Relaxed);
                return;
            }
        }
        if !self.write(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it was written, or cannot be counted as lost: without stderr there is no place
    /// where that could be told.
    fn write(&self, text: &str) -> bool {
        match self.pipe.as_ref().filter(|pipe| pipe.is_stderr()) {
            Some(pipe) => match (&pipe.file).write(text.as_bytes()) {
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
                Ok(_) => true,
            },
            None => {
                let written = nix::unistd::write(io::stderr().as_fd(), text.as_bytes());
                written != Err(nix::Error::ENOSPC)
            }
        }
    }
}
