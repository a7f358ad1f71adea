//! Finding the programs that we start.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::error::Error;

/// The environment variable that names another holder.
const HOLDER_VARIABLE: &str = "NBD_HOLDER_PROGRAM";

/// The holder: the one that the environment names, our neighbour, or the one in PATH.
pub(crate) fn holder() -> Result<String, Error> {
    match env::var(HOLDER_VARIABLE) {
        Ok(name) if !name.is_empty() => find(&name),
        _ => ours("nbd-kernel-holder", format!("install it, or set {HOLDER_VARIABLE} to its path")),
    }
}

/// nbd-serve: our neighbour or the one in PATH.
pub(crate) fn nbd_serve() -> Result<String, Error> {
    ours("nbd-serve", "install it".into())
}

/// gdb, in PATH.
pub(crate) fn gdb() -> Result<String, Error> {
    in_path("gdb").map_or_else(
        || {
            Err(Error::NoProgram {
                program: "gdb".into(),
                place: "in PATH",
                way_out: "install it".into(),
            })
        },
        text,
    )
}

/// A program by its path, or by its name in PATH, as an absolute path.
pub(crate) fn find(name: &str) -> Result<String, Error> {
    if name.contains('/') {
        let path = std::path::absolute(name).unwrap_or_else(|_| name.into());
        return match problem(&path) {
            None => text(path),
            Some(NOT_THERE) => Err(Error::NoProgram {
                program: name.into(),
                place: "there",
                way_out: "check the path".into(),
            }),
            Some(problem) => Err(Error::NotAProgram { program: name.into(), problem }),
        };
    }
    match in_path(name) {
        Some(path) => text(path),
        None => Err(Error::NoProgram {
            program: name.into(),
            place: "in PATH",
            way_out: format!("give its path, like ./{name}"),
        }),
    }
}

fn ours(name: &str, way_out: String) -> Result<String, Error> {
    let neighbour = env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.join(name)))
        .filter(|path| problem(path).is_none());
    match neighbour.or_else(|| in_path(name)) {
        Some(path) => text(path),
        None => Err(Error::NoProgram {
            program: name.into(),
            place: "beside nbd-ctl or in PATH",
            way_out,
        }),
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let directories = env::var_os("PATH")?;
    env::split_paths(&directories)
        .map(|directory| directory.join(name))
        .find(|path| problem(path).is_none())
        .and_then(|path| std::path::absolute(path).ok())
}

const NOT_THERE: &str = "does not exist";

fn problem(path: &Path) -> Option<&'static str> {
    match fs::metadata(path) {
        Err(_) => Some(NOT_THERE),
        Ok(meta) if meta.is_dir() => Some("is a directory"),
        Ok(meta) if !meta.is_file() => Some("is not a file"),
        Ok(_) if access(path, AccessFlags::X_OK).is_err() => Some("is not executable"),
        Ok(_) => None,
    }
}

/// Command lines travel as text.
fn text(path: PathBuf) -> Result<String, Error> {
    path.into_os_string().into_string().map_err(|name| Error::NotAProgram {
        program: name.to_string_lossy().into_owned(),
        problem: "its path is not valid UTF-8",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_and_a_path_is_not() {
        let found = find("sh").unwrap();
        assert!(found.starts_with('/') && found.ends_with("/sh"), "{found}");
        assert_eq!(find("/bin/sh").unwrap(), "/bin/sh");
    }

    #[test]
    fn what_cannot_be_run_is_named_with_its_problem() {
        for (name, message) in [
            (
                "no-such-program",
                "no-such-program: no such program in PATH: give its path, like ./no-such-program",
            ),
            ("./no-such", "./no-such: no such program there: check the path"),
            ("/etc", "/etc: is a directory: it must be an executable file"),
            ("/etc/passwd", "/etc/passwd: is not executable: it must be an executable file"),
        ] {
            assert_eq!(find(name).unwrap_err().to_string(), message);
        }
    }
}
