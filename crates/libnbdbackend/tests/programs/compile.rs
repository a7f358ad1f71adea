//! Programs in C, compiled with the header and the library of this build.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::holder::Directory;

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where C and C++ examples are.
pub(crate) fn examples() -> PathBuf {
    crate_dir().join("../../examples")
}

/// The header's directory.
pub(crate) fn include() -> PathBuf {
    crate_dir().join("include")
}

/// Puts the library of this build into the directory, under the names by which it is looked for.
pub(crate) fn link_library(directory: &Directory) {
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libnbdbackend.so");
    for name in ["libnbdbackend.so", "libnbdbackend.so.0"] {
        let link = directory.path().join(name);
        if !link.exists() {
            symlink(&library, link).unwrap();
        }
    }
}

/// Compiles and links a source with all warnings as errors, into the directory.
pub(crate) fn compile(compiler: &str, source: &Path, directory: &Directory) -> PathBuf {
    compile_with(compiler, &[], source, directory)
}

/// The same, with more options.
pub(crate) fn compile_with(
    compiler: &str,
    options: &[&str],
    source: &Path,
    directory: &Directory,
) -> PathBuf {
    link_library(directory);
    let program = directory.path().join(source.file_stem().unwrap());
    let status = Command::new(compiler)
        .args([
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pedantic",
            "-D_GNU_SOURCE",
            "-g",
            "-O1",
            "-pthread",
        ])
        .args(options)
        .arg("-I")
        .arg(include())
        .arg("-o")
        .args([&program, source])
        .arg("-L")
        .arg(directory.path())
        .arg("-lnbdbackend")
        .arg(format!("-Wl,-rpath,{}", directory.path().display()))
        .status()
        .unwrap();
    assert!(status.success(), "{} does not compile", source.display());
    program
}

/// A running program, killed if the test ends before it.
pub(crate) struct Program(Child);

impl Program {
    /// Starts a program that finds the holders of a directory; output and errors go to files there.
    pub(crate) fn start<S: AsRef<OsStr>>(
        directory: &Directory,
        command: &[S],
        environment: &[(&str, &str)],
    ) -> Self {
        Self::start_with(directory, command, environment, Stdio::null())
    }

    /// The same, which reads what is typed.
    pub(crate) fn start_with<S: AsRef<OsStr>>(
        directory: &Directory,
        command: &[S],
        environment: &[(&str, &str)],
        input: Stdio,
    ) -> Self {
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new(&command[0])
            .args(&command[1..])
            .env("NBD_RUNTIME_DIR", directory.path())
            .envs(environment.iter().copied())
            .current_dir(directory.path())
            .stdin(input)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Self(child.unwrap())
    }

    /// How many entries a folder of `/proc/PID` has.
    pub(crate) fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/{folder}", self.0.id())).unwrap().count()
    }

    /// Types a line.
    pub(crate) fn type_line(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What programs that were started in a directory printed.
pub(crate) fn printed(directory: &Directory) -> String {
    std::fs::read_to_string(directory.path().join("log")).unwrap()
}
