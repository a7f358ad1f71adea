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
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::backend::ExportInfo;
use crate::history::History;
use crate::process::ProcessId;
use crate::state_file;

/// The default runtime directory.
pub const DEFAULT_DIRECTORY: &str = "/run/nbd";
/// The environment variable that names another one.
pub const DIRECTORY_VARIABLE: &str = "NBD_RUNTIME_DIR";

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
    /// `ioctl` or `netlink`.
    pub kernel_api: String,
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
    /// Number of lanes.
    pub lanes: u32,
    /// Names of the keepsakes, in the order of their descriptors.
    pub keepsakes: Vec<String>,
    /// The user that backends run as.
    pub user: Option<String>,
    /// How backends are confined: `local` or `network`.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// The group that may look.
    #[serde(default)]
    pub group: Option<String>,
    /// When to start a lost backend again.
    pub restart: String,
    /// How many failures in a row are too many, or [`State::UNLIMITED`]; see
    /// [`State::restart_limit`].
    pub restart_limit: u32,
    /// Whether the operator has asked for that limit.
    #[serde(default)]
    pub restart_limit_given: bool,
    /// How many crashes of backends by one request are too many; 0 is never.
    pub poison_limit: u32,
    /// What requests are recorded to.
    #[serde(default)]
    pub recording: Option<String>,
    /// Whether systemd's last kill at shutdown shall leave the processes alone.
    #[serde(default)]
    pub survive_shutdown: bool,
    /// Whether a second backend is kept started.
    pub warm_spare: bool,
    /// The queue's `io_timeout` before attach, in milliseconds.
    pub io_timeout: Option<u64>,
    /// How often a backend was started again.
    pub restarts: u64,
    /// What becomes of requests while there is no backend: `hold` or `fail:SECONDS`.
    pub on_backend_loss: String,
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
    /// A limit that is never reached, also for holders that know of no devices without a limit.
    pub const UNLIMITED: u32 = u32::MAX;
    /// The limit that holders had, and wrote down, when none was asked for.
    const FORMER_LIMIT: u32 = 10;

    /// How many failures in a row are too many, if the operator has asked for a limit.
    #[must_use]
    pub fn restart_limit(&self) -> Option<u32> {
        asked_limit(self.restart_limit, self.restart_limit_given)
    }
}

/// A number that older holders wrote down without being asked is no limit.
fn asked_limit(limit: u32, given: bool) -> Option<u32> {
    let by_itself = limit == State::UNLIMITED || limit == State::FORMER_LIMIT;
    (given || !by_itself).then_some(limit)
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

    /// Makes the runtime directory, and checks that nobody else can put things into it.
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
    pub fn lock_file(&self) -> io::Result<fs::File> {
        let path = self.directory.join("lock");
        fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
    }

    /// Makes a device's folder; fails with `AlreadyExists` if it has one.
    pub fn create_folder(&self, index: u32) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(self.folder(index))
    }

    /// Removes all that belongs to a device but its log, which becomes the [last
    /// one](Self::last_log). What does not exist is fine.
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

    /// Moves the log out of its folder, which keeps it from others than root and the group that may
    /// look.
    fn keep_log(&self, index: u32) -> io::Result<()> {
        let log = self.log(index);
        if fs::metadata(&log)?.len() == 0 {
            return Ok(());
        }
        let folder = fs::metadata(self.folder(index))?;
        let group_may_look = folder.mode() & 0o010 != 0;
        if group_may_look {
            std::os::unix::fs::chown(&log, None, Some(folder.gid()))?;
        }
        let mode = if group_may_look { 0o640 } else { 0o600 };
        fs::set_permissions(&log, fs::Permissions::from_mode(mode))?;
        fs::rename(&log, self.last_log(index))
    }

    /// The devices that have a folder, in order.
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
    /// It cannot be read, or is none of this version.
    pub fn read_state(&self, index: u32) -> io::Result<Option<State>> {
        let Some(text) = state_file::read(&self.folder(index))? else {
            return Ok(None);
        };
        let state: State = serde_json::from_slice(&text)?;
        if state.version != State::VERSION {
            let text = format!("state of version {} and not {}", state.version, State::VERSION);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_one_that_was_asked_for() {
        assert_eq!(asked_limit(10, true), Some(10));
        assert_eq!(asked_limit(0, true), Some(0));
        assert_eq!(asked_limit(10, false), None, "the default of older holders");
        assert_eq!(asked_limit(7, false), Some(7), "older holders were asked for it");
        assert_eq!(asked_limit(State::UNLIMITED, false), None);
    }
}
