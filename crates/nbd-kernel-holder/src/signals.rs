//! SIGTERM, SIGINT and SIGHUP as a descriptor.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// Readable when the holder was asked to stop.
#[derive(Debug)]
pub(crate) struct Signals {
    pipe: UnixStream,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self { pipe: read })
    }

    /// Whether there was a signal since the last call.
    pub(crate) fn take(&self) -> bool {
        let mut buffer = [0; 64];
        (&self.pipe).read(&mut buffer).is_ok_and(|count| count > 0)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
