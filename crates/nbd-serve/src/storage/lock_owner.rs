//! Who has locked a file: for an error message, so an answer that cannot be had is no error.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nbd_control::registry::Registry;
use nix::sys::stat::{major, minor};

/// A process that has locked a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockOwner {
    pub(crate) pid: i32,
    pub(crate) command: String,
    /// The device that the process belongs to, like `nbd0`.
    pub(crate) device: Option<String>,
}

impl fmt::Display for LockOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.command, self.pid)
    }
}

/// Finds out who has locked a file.
///
/// `/proc/locks` is open to everybody, but names the process that took the lock, which may be
/// dead while others have the description; and its device number is not what stat(2) says on
/// btrfs and overlays. So a candidate is only believed if it has the file open, where one can
/// see that; and if there is none, all processes are searched for one that has.
pub(crate) fn find(file: &File) -> Option<LockOwner> {
    let identity = Identity::of(&file.metadata().ok()?);
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let listed = locks
        .lines()
        .filter_map(Line::parse)
        .filter(|line| line.inode == identity.inode)
        .filter(|line| {
            let same_device = (line.major, line.minor) == identity.numbers();
            identity.is_open_in(line.pid, false).unwrap_or(same_device)
        })
        .map(|line| line.pid)
        .find_map(|pid| Some((pid, command(pid)?)));
    let (pid, command) = listed.or_else(|| {
        processes()
            .filter(|pid| identity.is_open_in(*pid, true) == Some(true))
            .find_map(|pid| Some((pid, command(pid)?)))
    })?;
    Some(LockOwner { pid, command, device: device_of(pid) })
}

/// An entry of `/proc/locks` that is a flock(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    pid: i32,
    major: u64,
    minor: u64,
    inode: u64,
}

impl Line {
    /// `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`; the device is in hexadecimal. Waiting
    /// processes have `->` after the number, and none of what follows is a lock.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().skip(1);
        if fields.next()? != "FLOCK" {
            return None;
        }
        let pid = fields.nth(2)?.parse().ok()?;
        let mut file = fields.next()?.split(':');
        Some(Self {
            pid,
            major: u64::from_str_radix(file.next()?, 16).ok()?,
            minor: u64::from_str_radix(file.next()?, 16).ok()?,
            inode: file.next()?.parse().ok()?,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    fn numbers(&self) -> (u64, u64) {
        (major(self.device), minor(self.device))
    }

    /// Whether a process has the file open, and with `locked` also locked; nothing if that is
    /// none of our business.
    fn is_open_in(&self, pid: i32, locked: bool) -> Option<bool> {
        let process = format!("/proc/{pid}");
        let process = Path::new(&process);
        let entries = fs::read_dir(process.join("fd")).ok()?;
        Some(entries.flatten().any(|entry| {
            fs::metadata(entry.path()).is_ok_and(|found| Self::of(&found) == *self)
                && (!locked || is_locked(&process.join("fdinfo").join(entry.file_name())))
        }))
    }
}

fn is_locked(fdinfo: &Path) -> bool {
    fs::read_to_string(fdinfo).is_ok_and(|text| {
        text.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
    })
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The kernel keeps 15 bytes of a name; the rest is in the command line, if that is genuine.
fn command(pid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let name = name.trim_end();
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = line.split('\0').next().unwrap_or_default();
    let whole = program.rsplit('/').next().unwrap_or_default();
    Some(if whole.starts_with(name) { whole } else { name }.into())
}

/// The attached device whose holder, sitter or backend a process is. Only root can tell.
fn device_of(pid: i32) -> Option<String> {
    let registry = Registry::new(None);
    registry.devices().ok()?.into_iter().find_map(|index| {
        let state = registry.read_state(index).ok()??;
        let backend = state.backend.map(|backend| backend.pid);
        [Some(state.holder.pid), Some(state.sitter.pid), backend]
            .contains(&Some(pid))
            .then(|| format!("nbd{index}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_locks_that_are_held_are_parsed() {
        let held = Line::parse("1: FLOCK  ADVISORY  WRITE 1234 fe:0a:5678 0 EOF");
        let expected = Line { pid: 1234, major: 0xfe, minor: 0x0a, inode: 5678 };
        assert_eq!(held, Some(expected));
        for line in [
            "1: -> FLOCK  ADVISORY  WRITE 1234 fe:0a:5678 0 EOF",
            "2: POSIX  ADVISORY  READ 1234 fe:0a:5678 128 128",
            "3: OFDLCK ADVISORY  WRITE -1 fe:0a:5678 0 EOF",
            "4: FLOCK  ADVISORY  WRITE 1234",
            "4: FLOCK  ADVISORY  WRITE 1234 fe:0a",
            "",
        ] {
            assert_eq!(Line::parse(line), None, "{line}");
        }
    }

    #[test]
    fn every_process_has_a_command() {
        let me = std::process::id() as i32;
        assert!(command(me).is_some());
        assert!(processes().any(|pid| pid == me));
        assert_eq!(device_of(me), None);
    }
}
