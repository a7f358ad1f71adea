//! A block device under an export, whose server fails or falls silent at our command.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal::SIGCONT;

use crate::command::{Running, run, start};
use crate::sysfs::block_attribute;
use crate::temp::TempDir;
use crate::wait::{EVENT_TIMEOUT, wait_until};

/// The device: far from those that an attach picks.
pub const UNDER: &str = "/dev/nbd9";

/// A block device served by nbdkit, whose errors and silence are at our command.
#[derive(Debug)]
pub struct Under {
    /// Its server.
    pub nbdkit: Running,
    /// While this file is there each request fails.
    pub broken: PathBuf,
}

impl Under {
    /// Sets it up, with 4 MiB.
    #[track_caller]
    #[must_use]
    pub fn new(files: &TempDir) -> Self {
        let broken = files.join("broken");
        let socket = files.join("socket").display().to_string();
        let error_file = format!("error-file={}", broken.display());
        let nbdkit = start(
            "nbdkit",
            [
                "--foreground",
                "--unix",
                &socket,
                "--filter=error",
                "memory",
                "4M",
                "error=EIO",
                "error-rate=100%",
                &error_file,
            ],
        );
        wait_until("nbdkit", EVENT_TIMEOUT, || fs::metadata(&socket).is_ok());
        run("nbd-client", ["-unix", &socket, UNDER]).succeeds();
        Self { nbdkit, broken }
    }

    /// Takes it away; panics unless that works.
    #[track_caller]
    pub fn end(self) {
        run("nbd-client", ["-d", UNDER]).succeeds();
        wait_until("it is free", EVENT_TIMEOUT, || block_attribute("nbd9", "pid").is_none());
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.nbdkit.signal(SIGCONT);
        let _ = Command::new("nbd-client").args(["-d", UNDER]).output();
    }
}
