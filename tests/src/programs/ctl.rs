//! The programs under test.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::command::{Output, PROGRAM_TIMEOUT, Running, start};

/// Where our programs are: `NBD_BIN_DIR`, or where cargo puts them.
#[must_use]
pub fn bin_dir() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let named = env::var_os("NBD_BIN_DIR").map(PathBuf::from);
        let directory = named.unwrap_or_else(|| {
            // target/debug/deps/kernel_kill-0123456789abcdef
            let test = env::current_exe().expect("a name of this program");
            let directory = test.ancestors().nth(2).expect("a target directory");
            directory.to_path_buf()
        });
        for name in ["nbd-ctl", "nbd-kernel-holder", "nbd-serve"] {
            let path = directory.join(name);
            assert!(
                path.is_file(),
                "{}: not there: run `cargo build --workspace`, or set NBD_BIN_DIR",
                path.display()
            );
        }
        directory
    })
}

/// The path of one of our programs.
#[must_use]
pub fn program(name: &str) -> String {
    bin_dir().join(name).display().to_string()
}

/// Panics unless there is a driver, and it is there to be experimented with.
pub fn require_machine() {
    assert!(
        Path::new("/sys/module/nbd").exists(),
        "the nbd driver is not loaded: run this test with scripts/test or in scripts/vm"
    );
    assert!(
        env::var_os("VM_SHARE").is_some() || env::var_os("NBD_TESTS_HERE").is_some(),
        "this test would use and kill devices of this machine: run it with scripts/test or in \
         scripts/vm, or set NBD_TESTS_HERE=1"
    );
}

/// Runs nbd-ctl.
#[track_caller]
pub fn ctl<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    start_ctl(arguments).finish(PROGRAM_TIMEOUT)
}

/// Starts nbd-ctl.
#[track_caller]
pub fn start_ctl<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Running {
    require_machine();
    start(program("nbd-ctl"), arguments)
}

/// Starts nbd-serve by hand.
#[track_caller]
pub fn start_serve<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Running {
    require_machine();
    start(program("nbd-serve"), arguments)
}
