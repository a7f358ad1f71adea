//! Programs in C with libnbdbackend, and plugins of nbdkit, compiled where the test runs.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::command::run;
use crate::ctl::bin_dir;
use crate::page::root;
use crate::temp::TempDir;

/// Puts the library into a directory, under the names by which it is looked for.
#[track_caller]
pub fn link_library(directory: &TempDir) {
    let library = bin_dir().join("libnbdbackend.so");
    assert!(
        library.exists(),
        "{}: not there: run `cargo build -p libnbdbackend`",
        library.display()
    );
    for name in ["libnbdbackend.so", "libnbdbackend.so.0"] {
        if !directory.join(name).exists() {
            symlink(&library, directory.join(name)).expect("a link to the library");
        }
    }
}

/// Compiles a source of the repository into a directory; the path of the program.
#[track_caller]
#[must_use]
pub fn compile(source: &str, directory: &TempDir) -> String {
    link_library(directory);
    let source = root().join(source);
    let stem = Path::new(&source).file_stem().expect("a source").to_string_lossy().into_owned();
    let program = directory.join(&stem).display().to_string();
    let include = root().join("crates/libnbdbackend/include").display().to_string();
    let here = directory.path().display().to_string();
    let words = ["-D_GNU_SOURCE", "-O1", "-g", "-pthread", "-I", &include, "-o", &program];
    let source = source.display().to_string();
    let libraries = ["-L", &here, "-lnbdbackend", &format!("-Wl,-rpath,{here}")];
    run("cc", words.into_iter().chain([&*source]).chain(libraries)).succeeds();
    program
}

/// Compiles the plugin that the tests of nbd-nbdkit use, with macros. It takes the place of an older
/// build as a new file, because the loader keeps the old one mapped.
#[track_caller]
#[must_use]
pub fn compile_plugin(directory: &TempDir, name: &str, macros: &[&str]) -> PathBuf {
    let source = root().join("crates/nbd-nbdkit/tests/plugins/plugin.c");
    let (object, new) = (directory.join(name), directory.join("new.so"));
    let macros = macros.iter().map(|name| format!("-D{name}"));
    let words = ["-g", "-shared", "-fPIC", "-o"].map(String::from).into_iter();
    let files = [&new, &source].map(|path| path.display().to_string());
    run("cc", words.chain(files).chain(macros)).succeeds();
    std::fs::rename(new, &object).expect("a plugin to replace");
    object
}
