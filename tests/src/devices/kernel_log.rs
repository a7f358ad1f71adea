//! The kernel's log from a moment on.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// What the kernel says in the normal course of events.
const USUAL: [&str; 9] = [
    "detected capacity change",
    "NBD_DISCONNECT",
    "Disconnected due to user request",
    "shutting down sockets",
    "mounted filesystem",
    "resizing filesystem",
    "resized filesystem",
    "unmounting filesystem",
    // With the name of the process, which may be that of a test.
    "drop_caches",
];
const O_NONBLOCK: i32 = 0o4000;

/// Reads what comes after it was made.
#[derive(Debug)]
pub struct KernelLog(File);

impl KernelLog {
    /// Begins now.
    #[must_use]
    pub fn from_now() -> Self {
        let mut options = File::options();
        let file = options.read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg");
        let mut file = file.expect("/dev/kmsg");
        file.seek(SeekFrom::End(0)).expect("the end of /dev/kmsg");
        Self(file)
    }

    /// The messages since then or the last call.
    #[must_use]
    pub fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = vec![0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    // priority,number,microseconds,flags;message
                    let message = text.split_once(';').map_or(&*text, |(_, message)| message);
                    lines.extend(message.lines().next().map(str::to_owned));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return lines,
                // Some were overwritten before we read them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => panic!("/dev/kmsg: {error}"),
            }
        }
    }

    /// Those that tell of something unusual about NBD devices or I/O.
    #[must_use]
    pub fn complaints(&mut self) -> Vec<String> {
        let about = |line: &String| {
            let decisive = ["nbd", "I/O error", "blocked for more than", "EXT4-fs error"];
            decisive.iter().any(|word| line.contains(word))
                && !USUAL.iter().any(|word| line.contains(word))
        };
        self.lines().into_iter().filter(about).collect()
    }

    /// Panics if there are such.
    #[track_caller]
    pub fn has_no_complaints(&mut self) {
        let complaints = self.complaints();
        assert!(complaints.is_empty(), "the kernel complains: {complaints:#?}");
    }
}
