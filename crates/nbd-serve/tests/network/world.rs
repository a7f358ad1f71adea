//! A running server, and running other people's programs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nbd_net::testing::Scratch;
use nbd_proto::handshake::ClientOptions;
use nbd_server::testing::RawClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_nbd-serve");
/// Only a hang takes as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for other people's programs, in seconds.
const LIMIT: &str = "120";

/// A running nbd-serve that listens on a unix socket.
pub(crate) struct Server {
    child: Child,
    lines: Receiver<String>,
    scratch: Scratch,
}

impl Server {
    /// Serves these exports; `{dir}` in an argument is a directory of the server's own.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self::in_directory(Scratch::new(), arguments)
    }

    /// A server of a file with this content, as the default export.
    pub(crate) fn of_content(content: &[u8]) -> Self {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("disk"), content).unwrap();
        Self::in_directory(scratch, &["file:{dir}/disk"])
    }

    pub(crate) fn in_directory(scratch: Scratch, arguments: &[&str]) -> Self {
        let directory = scratch.path().to_str().unwrap().to_owned();
        let arguments = arguments.iter().map(|text| text.replace("{dir}", &directory));
        let mut child = Command::new(PROGRAM)
            .arg(format!("--listen=unix:{directory}/socket"))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        let server = Self { child, lines, scratch };
        server.line("serving ");
        server
    }

    /// Waits for a line with these words; those before it are passed over.
    pub(crate) fn line(&self, words: &str) -> String {
        let mut before = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => before.push(line),
                Err(error) => panic!("no line with {words:?} ({error}), only {before:#?}"),
            }
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("socket").display())
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path("socket")).unwrap()
    }

    pub(crate) fn client(&self, export: &str) -> RawClient {
        RawClient::shake_hands(self.connect(), ClientOptions::new(export)).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the end, and returns what was said since the last [`line`](Self::line).
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.child.wait().unwrap();
        (status, self.lines.iter().collect())
    }

    /// Asks for the end, and returns what was said since the last [`line`](Self::line).
    pub(crate) fn stop(self) -> Vec<String> {
        self.signal(Signal::SIGTERM);
        let (status, lines) = self.end();
        assert_eq!(status.code(), Some(0), "{lines:#?}");
        lines
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Exit code, stdout and stderr of another program.
pub(crate) fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("timeout")
        .args([LIMIT, program])
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

/// Bytes of which no two neighbouring blocks are alike, and none is empty.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at >> 9) as u8).wrapping_mul(31) ^ at as u8 | 1).collect()
}

/// Data, a hole and data again: 4 MiB at the beginning, the last one, and 11 MiB of nothing.
pub(crate) fn sparse(path: &Path) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).unwrap();
    file.set_len(16 << 20).unwrap();
    file.write_all_at(&pattern(4 << 20), 0).unwrap();
    file.write_all_at(&pattern(1 << 20), 15 << 20).unwrap();
    fs::read(path).unwrap()
}
