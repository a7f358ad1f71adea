//! The processes that are killed, and the holder that starts them.
//!
//! They run nbd-backend's own engine as any backend does: they say hello, are granted the ledger,
//! the lane and a stored descriptor (their storage), recover and serve.

use std::error::Error;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_backend::{Backend, Endpoint, HolderConnection};
use nbd_control::Channel;
use nbd_control::backend::{FromBackend, FromHolder, Grant};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, raise};
use nix::unistd::{Pid, gettid};

use crate::device_fixture::DeviceFixture;
use crate::memory::Memory;
use crate::script::{LAYOUT, Manner};
use crate::trace::{self, Tracer};

/// Set for the processes only: how they work.
pub(crate) const MANNER: &str = "NBD_STEP_TEST_MANNER";
/// Set if they stop before and after they serve.
const STOPS: &str = "NBD_STEP_TEST_STOPS";
const STORED_FD_NAME: &str = "storage";
/// Nothing of what is waited for here takes as long, even on a machine that has much else to do.
pub(crate) const DEADLINE: Duration = Duration::from_secs(300);

type Failure = Box<dyn Error + Send + Sync>;

/// What a process does; its stdin is the connection to its holder. Not in the process's first
/// thread, see [`Tracer::seize`].
pub(crate) fn serve(manner: String) -> Result<(), Failure> {
    let thread = std::thread::spawn(move || serve_here(&manner));
    thread.join().map_err(|_| "the backend panicked")?
}

fn serve_here(manner: &str) -> Result<(), Failure> {
    let manners = [Manner::Inline, Manner::Held, Manner::Workers];
    let manner = manners.into_iter().find(|known| format!("{known:?}") == manner);
    let manner = manner.ok_or("an unknown manner")?;
    let holder = HolderConnection::connect(&Endpoint::Inherited(0))?;
    let geometry = Memory::new(File::open("/dev/null")?, manner).geometry();
    // The tracer needs the thread's id.
    let session = holder.hello(&gettid().to_string(), &geometry, false)?;
    let storage = session.stored_fd(STORED_FD_NAME).ok_or("no storage")?.try_clone_to_owned()?;
    let backend = Arc::new(Memory::new(storage.into(), manner));
    let stops = std::env::var_os(STOPS).is_some();
    if stops {
        raise(Signal::SIGSTOP)?;
    }
    let outcome = session.serve(backend);
    if stops {
        raise(Signal::SIGSTOP)?;
    }
    outcome?;
    Ok(())
}

/// A running backend.
pub(crate) struct Process {
    child: Child,
    holder: UnixStream,
    stderr: File,
    thread: Option<Pid>,
}

impl Process {
    /// Starts a backend that serves a fixture at full speed.
    pub(crate) fn start(fixture: &DeviceFixture) -> Self {
        Self::spawn(fixture, false).0
    }

    /// Starts a backend and stops it where it begins to recover.
    pub(crate) fn start_traced(fixture: &DeviceFixture) -> (Self, Tracer) {
        let (process, tracer) = Self::spawn(fixture, true);
        let mut tracer = tracer.expect("asked for");
        tracer.run_to_barrier();
        (process, tracer)
    }

    fn spawn(fixture: &DeviceFixture, traced: bool) -> (Self, Option<Tracer>) {
        let (holder, theirs) = UnixStream::pair().expect("a socket pair");
        let stderr = File::from(memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC).expect("memory"));
        let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
        command
            .args(["backend_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(MANNER, format!("{:?}", fixture.manner))
            .env("RUST_BACKTRACE", "0")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(stderr.try_clone().expect("a duplicate"));
        if traced {
            command.env(STOPS, "");
        }
        let child = command.spawn().expect("a backend can be started");
        drop(command);
        let mut process = Self {
            child,
            stderr,
            thread: None,
            holder: holder.try_clone().expect("a duplicate of the connection"),
        };
        let mut channel = Channel::new(holder).expect("a new connection");
        let hello = channel.receive_within(DEADLINE).expect("a backend that says hello").message;
        let FromBackend::Hello(hello) = hello else { panic!("{hello:?} before hello") };
        let tracer = traced.then(|| {
            let thread = hello.description.parse().expect("a thread's number");
            let thread = Pid::from_raw(thread);
            process.thread = Some(thread);
            Tracer::seize(thread)
        });
        let descriptors = fixture.descriptors();
        let descriptors = [0, 1, 2].map(|index: usize| descriptors[index].as_fd());
        channel.send(&FromHolder::Grant(grant()), &descriptors).expect("a backend that listens");
        process.holder.set_nonblocking(true).expect("a socket can be made nonblocking");
        process.listen();
        (process, tracer)
    }

    /// Kills it as the kernel kills: every thread of it is gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the backend can be killed");
        let status = self.wait();
        assert_eq!(status.signal(), Some(9), "a backend failed: {status}");
    }

    fn wait(&mut self) -> ExitStatus {
        if let Some(thread) = self.thread.take() {
            trace::reap(thread);
        }
        self.child.wait().expect("a child can be waited for")
    }

    /// Reads what it tells its holder, which is of no interest; returns whether it is gone.
    fn listen(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.holder.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // It left without having read everything.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Plays the kernel's part for a while; returns whether the backend has left, in order.
    pub(crate) fn turn(&mut self, fixture: &mut DeviceFixture, patience: u16) -> bool {
        while fixture.peer.send() {}
        let mut ready = [
            PollFd::new(fixture.peer.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.holder.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::from(patience)).expect("poll works");
        fixture.peer.receive(&fixture.storage);
        if !self.listen() {
            return false;
        }
        let status = self.wait();
        assert!(status.success(), "a backend failed: {status}");
        true
    }

    /// Plays the kernel's part to the end, and checks what remains.
    pub(crate) fn serve_to_the_end(mut self, mut fixture: DeviceFixture) {
        let start = Instant::now();
        while !self.turn(&mut fixture, 100) {
            let unanswered = fixture.peer.oracle.in_flight();
            assert!(start.elapsed() < DEADLINE, "nothing moves, {unanswered} are unanswered");
        }
        fixture.check_end();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Does nothing to a backend that was waited for.
        let _ = self.child.kill();
        let _ = self.wait();
        if std::thread::panicking() {
            let mut words = String::new();
            let _ = self.stderr.rewind();
            let _ = self.stderr.read_to_string(&mut words);
            eprintln!("the backend said: {words}");
        }
    }
}

fn grant() -> Grant {
    Grant {
        device: "nbd0".into(),
        lanes: LAYOUT.lanes,
        ring: LAYOUT.ring,
        transmit: LAYOUT.transmit,
        max_payload: LAYOUT.max_payload,
        keepsakes: vec![STORED_FD_NAME.into()],
        crashed: false,
        poison_limit: 0,
    }
}
