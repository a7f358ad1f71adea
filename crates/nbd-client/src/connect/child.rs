//! A server process of our own.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbd_control::service;
use nbd_net::descriptors;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::connect::child_words::Words;
use crate::connect::shell::{self, Line};
use crate::fence::{self, Fence};
use crate::system;

/// How the server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpawnMode {
    /// It speaks NBD on its standard input and output: `nbdkit -s`, anything made for inetd.
    Stdio,
    /// It listens on the socket that the variable `unixsocket` names.
    ListensOnPath,
    /// It is given a listening socket as descriptor 3, as by systemd.
    InheritsSocket,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    /// The server itself, or the supervisor of a shell that stays in front of it.
    child: Child,
    is_supervised: bool,
    process: OwnedFd,
    transport: Transport,
    words: Words,
}

#[derive(Debug)]
enum Transport {
    /// The other end of its standard input and output, until the first connection takes it.
    Stdio(Option<UnixStream>),
    /// A socket in a directory of its own.
    NamedSocket(Directory),
    /// A socket that has no name any more, by which it can be reached all the same.
    UnlinkedSocket(fs::File),
}

impl Server {
    /// Starts a server by the shell, which makes way for it where that [is possible](shell). Elsewhere
    /// shell and server have a [supervisor](system::supervise), which kills them `grace` after they
    /// were asked to end.
    ///
    /// The server ends when the calling thread does.
    pub(crate) fn start(
        text: &str,
        spawn_mode: SpawnMode,
        name: &str,
        grace: Duration,
    ) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new("/bin/sh");
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        // The server must not take this process's holder for its own, even if it is a backend.
        for variable in nbd_backend::ENVIRONMENT {
            command.env_remove(variable);
        }
        // Nor is it the service whose manager waits to hear that it is ready, or passes sockets.
        service::withhold(&mut command);
        // Signals of a terminal are for us, and what it starts is to end with it.
        command.process_group(0);
        system::die_with_this_thread(&mut command);
        system::keep_descriptors_from(&mut command, descriptors::original_limit());
        let Line { text: serve, keeps_shell } = shell::with_exec(text);
        if keeps_shell {
            system::supervise(&mut command, grace);
        }
        let (transport, script) = match spawn_mode {
            SpawnMode::Stdio => {
                let (ours, theirs) = UnixStream::pair()?;
                let theirs = OwnedFd::from(theirs);
                command.stdin(theirs.try_clone()?).stdout(theirs);
                (Transport::Stdio(Some(ours)), serve)
            }
            SpawnMode::ListensOnPath => {
                let directory = Directory::new()?;
                command.env("unixsocket", directory.socket());
                (Transport::NamedSocket(directory), serve)
            }
            SpawnMode::InheritsSocket => {
                let directory = Directory::new()?;
                let listener = UnixListener::bind(directory.socket())?;
                let socket = directory.open()?;
                command.stdin(OwnedFd::from(listener));
                // Only the shell knows the process number before the server runs.
                let script =
                    format!("exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; {serve}");
                (Transport::UnlinkedSocket(socket), script)
            }
        };
        let child = command.arg("-c").arg(script).spawn()?;
        // The command has copies of descriptors whose closing tells us that the server is gone.
        drop(command);
        let words = Words::default();
        let started = system::open_process(child.id()).and_then(|process| {
            words.pass_on(reader, name.into())?;
            Ok(process)
        });
        match started {
            Ok(process) => {
                Ok(Self { child, is_supervised: keeps_shell, process, transport, words })
            }
            Err(error) => {
                end_unobserved(child, keeps_shell);
                Err(error)
            }
        }
    }

    /// Names the process for as long as it lives, and after that.
    pub(crate) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// What it said last, once it has ended.
    pub(crate) fn last_words(&self, limit: Duration) -> String {
        self.words.last_of_dead(limit)
    }

    /// Connects, once the server is ready; `None` if there is nothing more to connect to.
    pub(crate) fn connect(&mut self, deadline: Instant) -> io::Result<Option<UnixStream>> {
        let path = match &mut self.transport {
            Transport::Stdio(stream) => return Ok(stream.take()),
            // It listens already.
            Transport::UnlinkedSocket(socket) => {
                return UnixStream::connect(proc_path(socket)).map(Some);
            }
            Transport::NamedSocket(directory) => directory.socket(),
        };
        let mut pause = Duration::from_millis(1);
        loop {
            let error = match UnixStream::connect(&path) {
                Ok(stream) => {
                    self.forget_directory()?;
                    return Ok(Some(stream));
                }
                Err(error) => error,
            };
            let is_starting =
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            if !is_starting || Instant::now() >= deadline || self.ended()?.is_some() {
                return Err(error);
            }
            // An early end is noticed at once, and there is no word for being ready.
            fence::wait_readable(self.process.as_fd(), Some(deadline.min(Instant::now() + pause)))?;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Once the server listens, its socket needs no name: see [`Directory::open`].
    fn forget_directory(&mut self) -> io::Result<()> {
        if let Transport::NamedSocket(directory) = &self.transport {
            self.transport = Transport::UnlinkedSocket(directory.open()?);
        }
        Ok(())
    }

    /// Ends the server and waits until it is dead, and with it all that a supervisor answers for.
    pub(crate) fn stop(&mut self, limit: Duration) -> io::Result<Fence> {
        let group = Pid::from_raw(self.child.id() as i32);
        for signal in [Signal::SIGTERM, last_signal(self.is_supervised)] {
            if let Some(status) = self.ended()? {
                return Ok(self.fence_after(status, limit));
            }
            // It has not been waited for, so the number is still its own.
            let _ = killpg(group, signal);
            if fence::wait_readable(self.process.as_fd(), Instant::now().checked_add(limit))? {
                let status = self.child.wait()?;
                return Ok(self.fence_after(status, limit));
            }
        }
        Ok(Fence::Open)
    }

    /// A supervisor exits when all others are dead. One that was killed leaves them alive, and of them
    /// we know only that they have ended once none can say a word any more.
    fn fence_after(&self, status: ExitStatus, limit: Duration) -> Fence {
        let was_last = !self.is_supervised || status.signal().is_none();
        if was_last || self.words.wait_for_end(limit) { Fence::Closed } else { Fence::Open }
    }
}

/// A supervisor kills the others itself, and must not be killed before.
fn last_signal(is_supervised: bool) -> Signal {
    if is_supervised { Signal::SIGTERM } else { Signal::SIGKILL }
}

/// For a server whose end can only be waited for without a limit.
fn end_unobserved(mut child: Child, is_supervised: bool) {
    // Errors mean that it has ended already, and there is one to report that says why it is ended.
    let _ = killpg(Pid::from_raw(child.id() as i32), last_signal(is_supervised));
    let _ = child.wait();
}

/// A directory that only we may enter, with a socket in it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("nbd-serve-{}-{count}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // StoredFd by another process of this number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    /// A descriptor by which the socket can be reached when the directory is no more: so nothing
    /// is left behind by a process that is killed.
    fn open(&self) -> io::Result<fs::File> {
        fs::File::options().read(true).custom_flags(libc::O_PATH).open(self.socket())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_dir(&self.0);
    }
}

fn proc_path(file: &fs::File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use nix::sys::signal::kill;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn one_that_cannot_be_observed_is_ended_with_all_it_has_started() {
        for line in ["sleep 3600", "sleep 3600 | sleep 3600"] {
            let (mut reader, writer) = io::pipe().unwrap();
            let mut command = Command::new("/bin/sh");
            command.args(["-c", line]).stdout(writer).process_group(0);
            let is_supervised = line.contains('|');
            if is_supervised {
                system::supervise(&mut command, LIMIT);
            }
            let child = command.spawn().unwrap();
            drop(command);
            end_unobserved(child, is_supervised);
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn what_a_killed_supervisor_leaves_is_waited_for() {
        // The shell dies with the supervisor.
        let line = "{ sleep 3600 & echo $!; wait; }";
        let mut server = Server::start(line, SpawnMode::Stdio, "server", LIMIT).unwrap();
        let mut stream = server.connect(Instant::now()).unwrap().unwrap();
        let mut number = String::new();
        BufReader::new(&mut stream).read_line(&mut number).unwrap();
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        assert_eq!(server.stop(Duration::from_millis(10)).unwrap(), Fence::Open);
        let left = Pid::from_raw(number.trim().parse().unwrap());
        kill(left, Signal::SIGKILL).unwrap();
        assert_eq!(server.stop(LIMIT).unwrap(), Fence::Closed);
    }
}
