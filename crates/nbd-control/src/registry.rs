//! The runtime directory: which devices are attached, and how to reach their holders.
//!
//! ```text
//! /run/nbd/            0755
//!   lock               flock: held while a free device is picked
//!   nbd0/              0700, root's; 0710 if a group may look; its holder has it locked (flock)
//!     control          nbd-ctl connects here
//!     state.json       what a new holder needs to adopt the device
//!     state.new        room for the next state.json
//!     gdb.py           commands for gdb, left by nbd-ctl debug
//!     udev             properties for the udev rules: name, whether it is about to go
//!     log              words of the holder and of backends that it started
//!     log.old          the same, from before
//!   nbd0.join          backends connect here; the socket's owner may be another user
//!   nbd0.log.last      the log of a device that is not attached any more
//!   NAME.log.last      a link to it, if the device had a name
//! ```

pub mod history;
pub mod remains;
mod state_file;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::attach_options::AttachOptions;
use crate::backend::ExportInfo;
use crate::history::History;
use crate::process::ProcessId;

/// The default runtime directory.
pub const DEFAULT_DIRECTORY: &str = "/run/nbd";
/// The environment variable that names another one.
pub const DIRECTORY_VARIABLE: &str = "NBD_RUNTIME_DIR";

/// How much of a line an error quotes.
const MAX_QUOTED_CHARS: usize = 200;
/// The property with a device's name.
const NAME_KEY: &str = "NBD_CTL_NAME";

/// What makes a process the holder of a device: a lock on the device's folder that ends with the
/// process. The kernel gives it to one process only.
pub type HolderLock = Flock<fs::File>;

/// The registry in one runtime directory.
#[derive(Clone, Debug)]
pub struct Registry {
    directory: PathBuf,
}

/// What a holder writes down so that another one can adopt its device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of this structure; [`State::VERSION`].
    pub version: u32,
    /// The device's number.
    pub index: u32,
    /// The holder.
    pub holder: ProcessId,
    /// The process that has copies of all descriptors, under fixed numbers.
    pub sitter: ProcessId,
    /// The backend that has the lanes, if any.
    pub backend: Option<ProcessId>,
    /// The program that is started when the backend is lost; empty if it comes from outside.
    pub program: Vec<String>,
    /// What the backend says it serves.
    pub description: String,
    /// The export.
    pub export: ExportInfo,
    /// Names of the keepsakes, in the order of their descriptors.
    pub keepsakes: Vec<String>,
    /// How it was attached.
    #[serde(flatten)]
    pub options: AttachOptions,
    /// Whether the operator has asked for a restart limit. Older holders wrote one down unasked.
    #[serde(default)]
    pub restart_limit_given: bool,
    /// What requests are recorded to.
    #[serde(default)]
    pub recording: Option<String>,
    /// The queue's `io_timeout` before attach, in milliseconds.
    pub io_timeout: Option<u64>,
    /// How often a backend was started again.
    pub restarts: u64,
    /// The operator has paused the device.
    pub paused: bool,
    /// The backend is one that only answers with EIO.
    pub stand_in: bool,
    /// Which events the holder was told to log, as for `--log-level`.
    #[serde(default)]
    pub log_level: Option<String>,
    /// What was met with so far.
    #[serde(default)]
    pub history: History,
}

impl State {
    /// The version that this program writes.
    pub const VERSION: u32 = 2;
    /// The limit that holders had, and wrote down, when none was asked for.
    const FORMER_RESTART_LIMIT: u32 = 10;

    fn parse(text: &[u8]) -> io::Result<Self> {
        let read = |error| unreadable(text, &error);
        // Of the fields that are flattened into the state, serde forgets where they are.
        serde_json::from_slice::<AttachOptions>(text).map_err(read)?;
        let mut state: Self = serde_json::from_slice(text).map_err(read)?;
        if state.version != Self::VERSION {
            let text = format!("state of version {} and not {}", state.version, Self::VERSION);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if !state.restart_limit_given
            && state.options.restart_limit == Some(Self::FORMER_RESTART_LIMIT)
        {
            state.options.restart_limit = None;
        }
        Ok(state)
    }
}

/// A state has a line for each field, which names it and has its value.
fn unreadable(text: &[u8], error: &serde_json::Error) -> io::Error {
    let line = text.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1));
    let line = String::from_utf8_lossy(line.unwrap_or_default().trim_ascii()).into_owned();
    let line: String = line.trim_end_matches(',').chars().take(MAX_QUOTED_CHARS).collect();
    io::Error::new(io::ErrorKind::InvalidData, format!("{line}: {error}"))
}

impl Registry {
    /// The registry in `directory`, or in the one that the environment names, or the default.
    #[must_use]
    pub fn new(directory: Option<PathBuf>) -> Self {
        let named = || std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from);
        let directory = directory.or_else(named).unwrap_or_else(|| DEFAULT_DIRECTORY.into());
        Self { directory }
    }

    /// The runtime directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The folder of a device.
    #[must_use]
    pub fn folder(&self, index: u32) -> PathBuf {
        self.directory.join(format!("nbd{index}"))
    }

    /// Where nbd-ctl connects.
    #[must_use]
    pub fn control_socket(&self, index: u32) -> PathBuf {
        self.folder(index).join("control")
    }

    /// Where backends connect.
    #[must_use]
    pub fn join_socket(&self, index: u32) -> PathBuf {
        self.directory.join(format!("nbd{index}.join"))
    }

    /// The log of a device.
    #[must_use]
    pub fn log(&self, index: u32) -> PathBuf {
        self.folder(index).join("log")
    }

    /// What was in the log when it was last full and begun anew.
    #[must_use]
    pub fn old_log(&self, index: u32) -> PathBuf {
        self.log(index).with_extension("old")
    }

    /// The log of the last time that a device was attached, or was to be.
    #[must_use]
    pub fn last_log(&self, index: u32) -> PathBuf {
        self.directory.join(format!("nbd{index}.log.last"))
    }

    /// Where commands for gdb are left while a device is attached.
    #[must_use]
    pub fn gdb_script(&self, index: u32) -> PathBuf {
        self.folder(index).join("gdb.py")
    }

    /// Writes down what udev's rules need to know of a device: its name, if it was given one, and
    /// whether it is about to go.
    ///
    /// # Errors
    ///
    /// The device has no folder, or there is no room in it.
    pub fn write_properties(
        &self,
        index: u32,
        name: Option<&str>,
        leaving: bool,
    ) -> io::Result<()> {
        let folder = self.folder(index);
        let (new, current) = (folder.join("udev.new"), folder.join("udev"));
        let name = name.unwrap_or_default();
        let text = format!("{NAME_KEY}={name}\nNBD_CTL_LEAVING={}\n", u8::from(leaving));
        // Only one digit changes in a device's life, and that needs no room.
        if fs::metadata(&current).is_ok_and(|meta| meta.len() == text.len() as u64) {
            return fs::OpenOptions::new()
                .write(true)
                .open(current)?
                .write_all_at(text.as_bytes(), 0);
        }
        fs::write(&new, text)?;
        fs::rename(new, current)
    }

    /// The name that a device was given at attach.
    #[must_use]
    pub fn name(&self, index: u32) -> Option<String> {
        let text = fs::read_to_string(self.folder(index).join("udev")).ok()?;
        let mut values = text.lines().filter_map(|line| line.strip_prefix(NAME_KEY));
        let name = values.next()?.strip_prefix('=')?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// Makes the runtime directory, and checks that no other user can put things into it.
    ///
    /// # Errors
    ///
    /// The directory cannot be made, or others than its owner and root may write to it.
    pub fn prepare(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)?;
        let meta = fs::metadata(&self.directory)?;
        let me = nix::unistd::geteuid().as_raw();
        if meta.mode() & 0o022 != 0 || (meta.uid() != me && meta.uid() != 0) {
            return Err(io::Error::other(
                "others may write to it; it must be writable by its owner only",
            ));
        }
        Ok(())
    }

    /// Opens the file to flock while a device is picked or an entry is changed.
    ///
    /// # Errors
    ///
    /// The file cannot be made or opened: there is no runtime directory, or this is not its owner.
    pub fn lock_file(&self) -> io::Result<fs::File> {
        let path = self.directory.join("lock");
        fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
    }

    /// Makes a device's folder; fails with `AlreadyExists` if it has one.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if the device has a folder; otherwise the directory cannot be written to.
    pub fn create_folder(&self, index: u32) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(self.folder(index))
    }

    /// Removes all that belongs to a device but its log, which becomes the [last
    /// one](Self::last_log). What does not exist is fine.
    ///
    /// # Errors
    ///
    /// Socket or folder cannot be removed.
    pub fn remove(&self, index: u32) -> io::Result<()> {
        // A log that cannot be kept is no reason to keep a device.
        let _ = self.keep_log(index);
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        gone(fs::remove_file(self.join_socket(index)))?;
        gone(fs::remove_dir_all(self.folder(index)))
    }

    /// Moves the log out of its folder, which keeps it from others than root.
    fn keep_log(&self, index: u32) -> io::Result<()> {
        let log = self.log(index);
        if fs::metadata(&log)?.len() == 0 {
            return Ok(());
        }
        // Earlier builds made it readable for all who got into the folder.
        fs::set_permissions(&log, fs::Permissions::from_mode(0o600))?;
        fs::rename(&log, self.last_log(index))?;
        self.name_last_log(index)
    }

    /// Makes the last log of a device known by the name that the device had, and by no other.
    fn name_last_log(&self, index: u32) -> io::Result<()> {
        let last = self.last_log(index);
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let path = entry.path();
            if fs::read_link(&path).is_ok_and(|to| last.ends_with(to)) {
                fs::remove_file(path)?;
            }
        }
        let (Some(name), Some(log)) = (self.name(index), last.file_name()) else {
            return Ok(());
        };
        let link = self.named_log(&name);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(log, link)
    }

    fn named_log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log.last"))
    }

    /// The device that had this name when it was attached last, if its log is still there.
    #[must_use]
    pub fn last_named(&self, name: &str) -> Option<u32> {
        let log = fs::read_link(self.named_log(name)).ok()?;
        log.to_str()?.strip_prefix("nbd")?.strip_suffix(".log.last")?.parse().ok()
    }

    /// The devices that have a folder, in order.
    ///
    /// # Errors
    ///
    /// The runtime directory cannot be read. One that does not exist has no devices.
    pub fn devices(&self) -> io::Result<Vec<u32>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut found: Vec<u32> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("nbd")?.parse().ok())
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Locks a device's folder for the one process that holds the device; `Ok(None)` if another
    /// process has it locked.
    ///
    /// Only under the registry's lock ([`Self::lock_file`]), so that a process that merely asks whether
    /// there is a holder cannot keep one from becoming it.
    ///
    /// # Errors
    ///
    /// There is no such folder, or it cannot be opened.
    pub fn lock_folder(&self, index: u32) -> io::Result<Option<HolderLock>> {
        Self::lock_opened(fs::File::open(self.folder(index))?)
    }

    /// The same for a folder that is open already, perhaps locked by the process that opened it.
    ///
    /// # Errors
    ///
    /// It cannot be locked.
    pub fn lock_opened(folder: fs::File) -> io::Result<Option<HolderLock>> {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Takes the room that a device's states need, so that they can be written when there is no more.
    ///
    /// # Errors
    ///
    /// There is not enough room.
    pub fn reserve_state(&self, index: u32) -> io::Result<()> {
        state_file::reserve(&self.folder(index))
    }

    /// Writes a device's state, all of it or nothing. Only its holder does that.
    ///
    /// # Errors
    ///
    /// The state is larger than what was reserved and there is no room for it, or its folder is gone.
    pub fn write_state(&self, state: &State) -> io::Result<()> {
        state_file::write(&self.folder(state.index), &serde_json::to_vec_pretty(state)?)
    }

    /// Reads a device's state. `Ok(None)` if none has been written.
    ///
    /// # Errors
    ///
    /// It cannot be read, is none of this version, or has a value that this program does not know.
    /// The error names the file, and of such a value the field and the value.
    pub fn read_state(&self, index: u32) -> io::Result<Option<State>> {
        let folder = self.folder(index);
        let state = state_file::read(&folder).and_then(|text| match text {
            Some(text) => State::parse(&text).map(Some),
            None => Ok(None),
        });
        state.map_err(|error| {
            let path = state_file::path(&folder);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })
    }
}

#[cfg(test)]
mod tests;
