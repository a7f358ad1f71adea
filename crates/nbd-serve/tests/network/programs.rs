//! Programs of other projects: started with a time limit, and what they print.

use std::process::{Command, Stdio};

/// In seconds. Only a hang takes as long.
const PROGRAM_TIMEOUT: &str = "120";

/// Exit code, stdout and stderr of another program.
pub(crate) fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("timeout")
        .args([PROGRAM_TIMEOUT, program])
        .args(arguments)
        // The Python that Debian's libnbd is for.
        .env("PATH", format!("/usr/bin:{path}"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("timeout {program}: {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    match output.status.code() {
        Some(127) => panic!("{program} is not installed: run scripts/setup"),
        Some(124) => panic!("{program} {arguments:?} hangs: {stdout}{stderr}"),
        code => (code.unwrap_or(-1), stdout, stderr),
    }
}

/// What a program prints that succeeds.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = run(program, arguments);
    assert_eq!(code, 0, "{program} {arguments:?}: {stdout}{stderr}");
    stdout
}
