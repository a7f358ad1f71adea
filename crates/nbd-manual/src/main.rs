//! Writes man pages and shell completions into a directory, for packaging.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        eprintln!(
            "nbd-manual: give the directory for man/ and completions/, like: nbd-manual target/manual"
        );
        return ExitCode::from(2);
    };
    match nbd_manual::write(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-manual: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}
