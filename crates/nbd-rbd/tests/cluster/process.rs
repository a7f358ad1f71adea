//! Another process that has an image open, to be killed: this program, run again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;

use nbd_backend::{Backend, Geometry};
use nbd_rbd::{ImageSpec, OnLoss, RbdBackend, RbdError};

use crate::cluster::{FileRecord, Image};

const VARIABLE: &str = "NBD_RBD_TEST_PROCESS";
pub(crate) const BLOCK: usize = 4096;
/// What it says begins like this, as the test harness talks as well.
const MARK: &str = "process: ";

/// A process that has an image open.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it. It has the image when this returns.
    pub(crate) fn open(image: &Image<'_>, options: &str, record: &Arc<FileRecord>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::process", "--nocapture"])
            .env(VARIABLE, image.text(options))
            .env(format!("{VARIABLE}_RECORD"), record.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut process = Self { child, input, output };
        assert_eq!(process.hear(), "open");
        process
    }

    /// Has it write blocks full of this byte, from the start of the image on.
    pub(crate) fn write(&mut self, byte: u8, blocks: usize) {
        writeln!(self.input, "{byte} {blocks}").unwrap();
    }

    /// The next thing that it says; empty when it has ended.
    pub(crate) fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return String::new();
            }
            if let Some((_, said)) = line.split_once(MARK) {
                return said.trim().to_owned();
            }
        }
    }

    pub(crate) fn id(&self) -> libc::pid_t {
        self.child.id().cast_signed()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(text: &str) {
    println!("\n{MARK}{text}");
}

/// No test: what runs in that process.
#[test]
fn process() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    let record = std::env::var_os(format!("{VARIABLE}_RECORD")).unwrap();
    let spec: ImageSpec = text.parse().unwrap();
    let on_loss = OnLoss::EndProcess(|| say("lost"));
    let agree = |now: &Geometry| Ok::<_, RbdError>(now.size);
    let record = FileRecord::new(record.as_ref());
    let backend = Arc::new(RbdBackend::open(&spec, record, on_loss, agree).unwrap());
    say("open");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (byte, blocks) = line.split_once(' ').unwrap();
        let (byte, blocks): (u8, u64) = (byte.parse().unwrap(), blocks.parse().unwrap());
        for block in 0..blocks {
            let backend = Arc::clone(&backend);
            std::thread::spawn(move || {
                let written = backend.write_at(&[byte; BLOCK], block * BLOCK as u64, false);
                say(&written.map_or_else(|error| error.to_string(), |()| "written".into()));
            });
        }
    }
    // Its record stays for a successor.
    std::process::abort();
}
