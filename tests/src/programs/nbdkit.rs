//! nbdkit: a server that somebody else runs, to be killed and started again.

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{Running, start};
use crate::wait::{EVENT_TIMEOUT, wait_until};

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
        Self::start_with(socket, ["file".as_ref(), disk.as_os_str()])
    }

    /// The same, with memory, and so slow to close a connection to which its client has said goodbye.
    #[track_caller]
    #[must_use]
    pub fn start_slow_to_close(socket: &Path, pause: Duration) -> Self {
        let pause = format!("delay-close={}ms", pause.as_millis());
        let filtered = ["--filter=delay", "memory", "16M", &pause];
        Self::start_with(socket, filtered.map(OsStr::new))
    }

    /// The same with memory, and without write zeroes.
    #[track_caller]
    #[must_use]
    pub fn start_without_zeroes(socket: &Path) -> Self {
        Self::start_with(socket, ["--filter=nozero", "memory", "16M"].map(OsStr::new))
    }

    #[track_caller]
    fn start_with<const N: usize>(socket: &Path, what: [&OsStr; N]) -> Self {
        // Left by the one before.
        let _ = std::fs::remove_file(socket);
        let socket = socket.to_owned();
        let place = ["-f".as_ref(), "-U".as_ref(), socket.as_os_str()];
        let mut running = start("nbdkit", place.into_iter().chain(what));
        wait_until("nbdkit listens", EVENT_TIMEOUT, || {
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
