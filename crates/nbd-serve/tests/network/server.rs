//! A running nbd-serve that listens on a unix socket, with a directory of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
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
const LINE_TIMEOUT: Duration = Duration::from_secs(60);

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
            match self.lines.recv_timeout(LINE_TIMEOUT) {
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
