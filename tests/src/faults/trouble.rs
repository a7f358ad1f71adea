//! Trouble in the surroundings of a device, switched on and off while a test works with it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use nbd_control::registry::{DEFAULT_DIRECTORY, Registry};
use nix::sys::signal::Signal;

use crate::command::run;
use crate::device::Device;
use crate::process::{children, signal};

/// What fills the runtime directory.
const FILLER: &str = "filler";

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The runtime directory has no room left.
    FullDirectory,
    /// The holder can open no further descriptor.
    NoDescriptors,
    /// The holder can map no further memory.
    NoMemory,
}

impl Trouble {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::FullDirectory, Self::NoDescriptors, Self::NoMemory];

    /// Begins it. The runtime directory must be a file system of its own.
    #[track_caller]
    #[must_use]
    pub fn begin(self, device: &Device) -> Active {
        match self {
            Self::FullDirectory => Active::Full(fill()),
            Self::NoDescriptors => limit_holder(device, "nofile", "Max open files", |pid| {
                fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or(0) as u64
            }),
            Self::NoMemory => limit_holder(device, "as", "Max address space", address_space),
        }
    }
}

/// Trouble that ends with this value.
#[derive(Debug)]
pub enum Active {
    /// The file that takes all the room.
    Full(PathBuf),
    /// A limit of the holder, and its former value.
    Limit {
        /// The holder.
        pid: i32,
        /// As prlimit(1) calls it.
        name: &'static str,
        /// What prlimit(1) sets again.
        before: String,
    },
    /// There was no holder to limit.
    Nothing,
}

impl Drop for Active {
    fn drop(&mut self) {
        match self {
            Self::Full(path) => {
                let _ = fs::remove_file(path);
            }
            // The holder may have been killed, and its limits are gone with it.
            Self::Limit { pid, name, before } => drop(set_limit(*pid, name, before)),
            Self::Nothing => {}
        }
    }
}

fn fill() -> PathBuf {
    let path = PathBuf::from(DEFAULT_DIRECTORY).join(FILLER);
    let mut file = File::create(&path).expect("a file in the runtime directory");
    // In small steps, so that the very last page is taken as well.
    loop {
        match file.write_all(&[0; 1024]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return path,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

fn limit_holder(
    device: &Device,
    name: &'static str,
    title: &str,
    used: impl Fn(i32) -> u64,
) -> Active {
    let state = Registry::new(None).read_state(device.index()).ok().flatten();
    let Some(pid) = state.map(|state| state.holder.pid) else {
        return Active::Nothing;
    };
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix(title));
    let Some(before) = line.and_then(|line| line.split_ascii_whitespace().next()) else {
        return Active::Nothing;
    };
    match set_limit(pid, name, &used(pid).to_string()) {
        true => Active::Limit { pid, name, before: before.to_owned() },
        false => Active::Nothing,
    }
}

/// Sets a soft limit; false if the process is gone.
fn set_limit(pid: i32, name: &str, value: &str) -> bool {
    let (pid, limit) = (pid.to_string(), format!("--{name}={value}:"));
    run("prlimit", ["--pid", &pid, &limit]).code == 0
}

fn address_space(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The process that has the lanes.
    Backend,
    /// The processes that wait for their turn.
    Spare,
    /// The holder.
    Holder,
}

impl Victim {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Backend, Self::Spare, Self::Holder];

    /// Sends SIGKILL, if there is such a process; says whether there was.
    pub fn kill(self, device: &Device) -> bool {
        let Some(state) = Registry::new(None).read_state(device.index()).ok().flatten() else {
            return false;
        };
        let backend = state.backend.map(|backend| backend.pid);
        let found = match self {
            Self::Backend => backend.into_iter().collect(),
            Self::Holder => vec![state.holder.pid],
            Self::Spare => {
                let mut found = children(state.holder.pid);
                found.retain(|pid| *pid != state.sitter.pid && Some(*pid) != backend);
                found
            }
        };
        let killed = found.into_iter().filter(|pid| signal(*pid, Signal::SIGKILL)).count();
        killed > 0
    }
}
