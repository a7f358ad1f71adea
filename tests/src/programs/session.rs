//! A shell that types the commands of a page, one after the other.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command};
use std::time::{Duration, Instant};

use crate::command::{Running, converse, run};
use crate::ctl::{bin_dir, program};
use crate::page::{Step, prints, root};
use crate::temp::TempDir;
use crate::wait::scaled_timeout;

/// Only a command that hangs takes so long.
const STEP_TIMEOUT: Duration = Duration::from_secs(150);
/// What python3 is on somebody's own PATH may be a script that is slow to start.
const SYSTEM: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// One shell for one page, in a directory of its own. When it is dropped, what it has started is
/// ended, and what it has mounted and attached is taken away.
#[derive(Debug)]
pub struct Session {
    shell: Running,
    stdin: ChildStdin,
    files: TempDir,
    count: usize,
}

impl Session {
    /// Starts one. The directories of the repository are there as they are in the repository.
    #[must_use]
    pub fn new() -> Self {
        let files = TempDir::new();
        fs::create_dir(files.join("here")).expect("a directory");
        for name in ["crates", "docs", "examples", "packaging", "scripts"] {
            let link = files.join("here").join(name);
            std::os::unix::fs::symlink(root().join(name), link).expect("a link");
        }
        // Where the page says target/debug or target/release, it means the programs under test.
        fs::create_dir(files.join("here").join("target")).expect("a directory");
        for name in ["debug", "release"] {
            let link = files.join("here").join("target").join(name);
            std::os::unix::fs::symlink(bin_dir(), link).expect("a link");
        }
        let mut bash = Command::new("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        bash.args(["--norc", "--noprofile"])
            .current_dir(files.join("here"))
            .env("PATH", format!("{}:{SYSTEM}:{path}", bin_dir().display()))
            .env("TERM", "dumb");
        let (shell, stdin) = converse(bash);
        Self { shell, stdin, files, count: 0 }
    }

    /// Types a command; the error says what is wrong with it.
    ///
    /// # Errors
    ///
    /// The command has another output or exit status than the page says, or does not end.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        self.count += 1;
        let file = |kind: &str| self.files.join(&format!("{}.{kind}", self.count));
        let [command, input, output, status] = ["command", "input", "output", "status"].map(file);
        fs::write(&command, &step.command).map_err(|error| error.to_string())?;
        fs::write(&input, &step.input).map_err(|error| error.to_string())?;
        let line = format!(
            "eval \"$(cat {})\" <{} >{} 2>&1; echo $? >{}\n",
            command.display(),
            input.display(),
            output.display(),
            status.display()
        );
        self.stdin.write_all(line.as_bytes()).map_err(|error| format!("no shell: {error}"))?;
        let code = self.wait_for(&status);
        let printed = fs::read(&output).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        let tell = |what: &str| format!("{what}:\n$ {}\n{printed}", step.command);
        match code {
            None => return Err(tell("does not end")),
            Some(0) => {}
            Some(code) => return Err(tell(&format!("ends with status {code}"))),
        }
        let lines: Vec<_> = printed.lines().collect();
        if step.expected.is_empty() || prints(&step.expected, &lines) {
            return Ok(());
        }
        Err(tell(&format!("does not print\n{}\nbut", step.expected.join("\n"))))
    }

    /// The number in that file, once it is there.
    fn wait_for(&mut self, path: &Path) -> Option<i32> {
        let deadline = Instant::now() + scaled_timeout(STEP_TIMEOUT);
        while Instant::now() < deadline && self.shell.is_running() {
            let text = fs::read_to_string(path).unwrap_or_default();
            if let Some(code) = text.strip_suffix('\n') {
                return code.parse().ok();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.stdin.write_all(b"umount -q /mnt; kill $(jobs -p) 2>/dev/null; exit\n");
        let deadline = Instant::now() + scaled_timeout(STEP_TIMEOUT);
        while self.shell.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        if !std::thread::panicking() {
            let taken_away = run(program("nbd-ctl"), ["detach", "--force", "--all"]);
            assert_eq!(taken_away.code, 0, "{}", taken_away.stderr);
        }
    }
}
