//! Signals as descriptors.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// SIGTERM, SIGINT and SIGHUP, which ask the holder to stop, and SIGCHLD.
#[derive(Debug)]
pub(crate) struct Signals {
    stop: UnixStream,
    child: UnixStream,
}

/// What has come since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) stop: bool,
    pub(crate) child: bool,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        let stop = pipe_of(&[SIGTERM, SIGINT, SIGHUP])?;
        Ok(Self { stop, child: pipe_of(&[SIGCHLD])? })
    }

    pub(crate) fn take(&self) -> Taken {
        Taken { stop: drain(&self.stop), child: drain(&self.child) }
    }

    /// One is readable when there is something to take.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.stop.as_fd(), self.child.as_fd()]
    }
}

fn pipe_of(signals: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for &signal in signals {
        pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

fn drain(mut pipe: &UnixStream) -> bool {
    let mut buffer = [0; 64];
    let mut any = false;
    while pipe.read(&mut buffer).is_ok_and(|count| count > 0) {
        any = true;
    }
    any
}
