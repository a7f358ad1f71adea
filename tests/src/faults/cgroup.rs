//! Control groups of version 2, which are gone at the end of their test.

use std::fs;
use std::path::{Path, PathBuf};

use crate::mount::Mount;
use crate::wait::{EVENT_TIMEOUT, wait_until};

/// A group, empty at first.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Unmounted after the group was removed.
    _mount: Mount,
}

impl Cgroup {
    /// Makes one whose memory can be limited.
    #[track_caller]
    #[must_use]
    pub fn new(place: &Path) -> Self {
        let mount = Mount::of_kind("cgroup2", place);
        let path = place.join("of-a-test");
        write(&place.join("cgroup.subtree_control"), "+memory");
        fs::create_dir(&path).expect("a control group");
        Self { path, _mount: mount }
    }

    /// Where its files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Limits its memory to so many bytes; the rest of it goes to swap.
    #[track_caller]
    pub fn limit_memory(&self, bytes: u64) {
        write(&self.path.join("memory.max"), &bytes.to_string());
    }

    /// Moves a process into it.
    #[track_caller]
    pub fn add(&self, pid: i32) {
        write(&self.path.join("cgroup.procs"), &pid.to_string());
    }

    /// Freezes all of it, or lets it go on, and waits until that is so.
    #[track_caller]
    pub fn freeze(&self, frozen: bool) {
        write(&self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" });
        let wanted = format!("frozen {}", u8::from(frozen));
        wait_until(&wanted, EVENT_TIMEOUT, || {
            let events = fs::read_to_string(self.path.join("cgroup.events"));
            events.is_ok_and(|events| events.lines().any(|line| line == wanted))
        });
    }
}

#[track_caller]
fn write(path: &Path, text: &str) {
    let written = fs::write(path, text);
    written.unwrap_or_else(|error| panic!("{}: {text}: {error}", path.display()));
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Errors are ignored: a group that is in use goes with the machine.
        let _ = fs::write(self.path.join("cgroup.freeze"), "0");
        let processes = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines() {
            let _ = fs::write(self.path.with_file_name("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.path);
    }
}
