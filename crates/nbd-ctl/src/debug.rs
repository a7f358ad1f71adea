//! `nbd-ctl debug`: gdb on the backend of a device, from a place that does not wait for the device.
//!
//! | module | idea |
//! |---|---|
//! | [`storage_deps`] | which block devices a file needs: gdb must not need the one it stops |
//! | [`record`] | `record`: requests with their data |
//! | [`replay`] | `replay`: the same requests again, without a device |

pub(crate) mod record;
pub(crate) mod replay;
mod storage_deps;

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_control::status::{BackendState, Status};

use crate::context::{Context, eprint};
use crate::debug::storage_deps::StorageDeps;
use crate::device::Device;
use crate::error::Error;
use crate::inspect::listed::state_name;
use crate::inspect::status;
use crate::program;

/// Where separate symbols, and gdb's own parts, are installed.
const GDB_DIRECTORIES: [&str; 2] = ["/usr/lib/debug", "/usr/share/gdb"];

/// What to debug, and how.
#[derive(Debug)]
pub(crate) struct Debug {
    pub(crate) device: Device,
    pub(crate) sources: Vec<PathBuf>,
    /// Only warn of what is on the device.
    pub(crate) yes: bool,
    /// More arguments for gdb.
    pub(crate) arguments: Vec<OsString>,
}

/// Becomes gdb. It returns only if that fails.
pub(crate) fn debug(context: &Context, wanted: &Debug) -> Result<(), Error> {
    let device = wanted.device;
    let status = status::of(context, device)?;
    let pid = backend(device, &status)?;
    let gdb = program::gdb()?;
    match on_itself(device, &needed(&gdb, pid, &wanted.sources)) {
        Some(needed) if wanted.yes => {
            eprint(&format!(
                "warning: gdb may wait for itself: it needs {needed}, which is on {device}"
            ));
        }
        Some(needed) => return Err(Error::OnItself { device, needed }),
        None => {}
    }
    let script = context.registry.gdb_script(device.0);
    fs::write(&script, nbd_ledger::gdb::script(&device.to_string()))
        .map_err(|source| Error::Registry { path: script.clone(), source })?;
    let mut command = Command::new(&gdb);
    // These before gdb attaches: it has much to say then, and a pager would keep the backend
    // stopped meanwhile, and so would a download of symbols.
    command.args(["-q", "-iex", "set pagination off", "-iex", "set debuginfod enabled off"]);
    for directory in &wanted.sources {
        command.arg("-d").arg(directory);
    }
    command.args(["-p", &pid.to_string(), "-x"]).arg(&script).args(&wanted.arguments);
    Err(Error::Start { program: gdb, source: command.exec() })
}

/// The process to debug.
fn backend(device: Device, status: &Status) -> Result<i32, Error> {
    let backend = &status.backend;
    match (backend.pid, backend.tracer_pid) {
        (Some(pid), Some(tracer)) => Err(Error::Traced { device, pid, tracer }),
        (Some(pid), None) if backend.state != BackendState::Failed => Ok(pid),
        _ => Err(Error::NoBackend { device, state: state_name(backend.state) }),
    }
}

/// Something that is read or written while the backend cannot serve it: what, and where.
type Needed = (&'static str, PathBuf);

fn needed(gdb: &str, pid: i32, sources: &[PathBuf]) -> Vec<Needed> {
    let mut all = Vec::new();
    let mut add = |what, path: PathBuf| all.push((what, path));
    add("gdb", fs::canonicalize(gdb).unwrap_or_else(|_| gdb.into()));
    for path in mapped_files(pid) {
        add("the backend's program, libraries and symbols", path);
    }
    for path in GDB_DIRECTORIES {
        add("gdb's files and symbols", path.into());
    }
    for path in sources {
        add("the sources", std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    }
    // Not env::current_dir, which asks the file system.
    for (what, link) in [
        ("the working directory", "/proc/self/cwd"),
        ("the terminal or a redirection", "/proc/self/fd/0"),
        ("the terminal or a redirection", "/proc/self/fd/1"),
        ("the terminal or a redirection", "/proc/self/fd/2"),
    ] {
        all.extend(fs::read_link(link).map(|path| (what, path)));
    }
    // gdb's settings and history.
    all.extend(env::var_os("HOME").map(|home| ("$HOME", home.into())));
    all
}

/// The files that a process has mapped, its program among them.
fn mapped_files(pid: i32) -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    // address, access, offset, device, inode, path
    let paths = maps.lines().filter_map(|line| line.splitn(6, ' ').nth(5));
    paths
        .map(|path| Path::new(path.trim_start()))
        .filter(|path| path.is_absolute())
        .map(Path::to_path_buf)
        .collect()
}

/// What of it is on the device.
pub(crate) fn on_itself(device: Device, needed: &[Needed]) -> Option<String> {
    let deps = match StorageDeps::of_this_process() {
        Ok(deps) => deps,
        Err(error) => {
            eprint(&format!(
                "warning: cannot tell what is on {device}: /proc/self/mountinfo: {error}"
            ));
            return None;
        }
    };
    let found: Vec<String> = needed
        .iter()
        .filter(|(_, path)| deps.needs(device, path))
        .map(|(what, path)| format!("{} ({what})", path.display()))
        .collect();
    (!found.is_empty()).then(|| found.join(", "))
}
