//! nbdkit: a server that somebody else runs, to be killed and started again.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::command::{Running, start};
use crate::wait::{LONG, wait_until};

/// nbdkit with a file, on a unix socket.
#[derive(Debug)]
pub struct Nbdkit {
    running: Running,
    socket: PathBuf,
}

impl Nbdkit {
    /// Starts it, and waits until it listens.
    #[track_caller]
    #[must_use]
    pub fn start(socket: &Path, disk: &Path) -> Self {
        // Left by the one before.
        let _ = std::fs::remove_file(socket);
        let (socket, disk) = (socket.to_owned(), disk.as_os_str());
        let arguments = ["-f".as_ref(), "-U".as_ref(), socket.as_os_str(), "file".as_ref(), disk];
        let mut running = start("nbdkit", arguments);
        wait_until("nbdkit listens", LONG, || {
            assert!(running.is_running(), "nbdkit: {}", running.words());
            UnixStream::connect(&socket).is_ok()
        });
        Self { running, socket }
    }

    /// Kills it and starts another one.
    #[track_caller]
    #[must_use]
    pub fn replace(self, disk: &Path) -> Self {
        let Self { running, socket } = self;
        drop(running);
        Self::start(&socket, disk)
    }

    /// Where it is, for nbd-serve.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }
}
