//! A scripted holder of nbd0 and the kernel behind it.

use std::cell::RefCell;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nbd_control::Channel;
use nbd_control::backend::{
    EXPORT_VARIABLE, ExportInfo, FromBackend, FromHolder, Grant, HOLDER_FD, Hello,
};
use nbd_ledger::{Layout, Ledger};
use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_nbd-serve");
/// Only a hang takes so long.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_true() {
        assert!(began.elapsed() < EVENT_TIMEOUT, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory that is removed with all that is in it.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-serve-cli-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// `file:` and the path of a new file of a mebibyte.
    pub(crate) fn file(&self, name: &str) -> String {
        let path = self.path(name);
        let file = fs::File::create_new(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        format!("file:{}", path.display())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running nbd-serve.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end; its status and what it said.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let mut words = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut words).unwrap();
        (self.0.wait().unwrap(), words)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All that outlives a backend.
pub(crate) struct Holder {
    directory: Directory,
    listener: UnixListener,
    layout: Layout,
    ledger: OwnedFd,
    lane: OwnedFd,
    kernel: UnixStream,
    stored_fds: Vec<(String, OwnedFd)>,
    export: Option<ExportInfo>,
    /// The connection of a backend that was started.
    inherited: RefCell<Option<UnixStream>>,
}

/// How a backend's introduction ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Ready { replayed: u32 },
    Failed(String),
}

impl Holder {
    pub(crate) fn new() -> Self {
        let directory = Directory::new();
        let listener = UnixListener::bind(directory.path("nbd0.join")).unwrap();
        let layout = Layout::with_lanes(1);
        let (lane, kernel) = UnixStream::pair().unwrap();
        kernel.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        Self {
            directory,
            listener,
            layout,
            ledger: Ledger::create(&layout).unwrap(),
            lane: lane.into(),
            kernel,
            stored_fds: Vec::new(),
            export: None,
            inherited: RefCell::default(),
        }
    }

    /// Starts a backend that finds this holder by its device's name.
    pub(crate) fn start(&self, arguments: &[&str]) -> Server {
        let child = Command::new(PROGRAM)
            .args(["--join", "nbd0"])
            .args(arguments)
            .env("NBD_RUNTIME_DIR", self.directory.path(""))
            .stderr(Stdio::piped())
            .spawn();
        Server(child.unwrap())
    }

    /// Starts a backend the way the real holder does: it is told what was attached.
    pub(crate) fn start_attached(&self, arguments: &[&str]) -> Server {
        let export = self.export.expect("nothing was attached");
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.inherited.borrow_mut().replace(ours);
        let child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 </dev/null", PROGRAM])
            .args(arguments)
            .env(HOLDER_FD, "3")
            .env(EXPORT_VARIABLE, export.to_variable())
            .stdin(OwnedFd::from(theirs))
            .stderr(Stdio::piped())
            .spawn();
        Server(child.unwrap())
    }

    /// Gives the next backend the lane and all else, until it is ready or gives up.
    pub(crate) fn receive(&mut self) -> (Hello, Fate) {
        let (hello, channel) = self.hear();
        (hello, self.grant(channel))
    }

    /// Lets the next backend introduce itself.
    pub(crate) fn hear(&mut self) -> (Hello, Channel) {
        let inherited = self.inherited.borrow_mut().take();
        let stream = inherited.unwrap_or_else(|| self.listener.accept().unwrap().0);
        let mut channel = Channel::new(stream).unwrap();
        let hello = loop {
            match channel.receive_within(EVENT_TIMEOUT).unwrap().message {
                FromBackend::Hello(hello) => break hello,
                // One that takes over looks at what is stored first.
                FromBackend::Examine => self.show_stored(&channel),
                other => panic!("no hello: {other:?}"),
            }
        };
        self.export = Some(hello.export);
        (hello, channel)
    }

    fn show_stored(&self, channel: &Channel) {
        let names = self.stored_fds.iter().map(|(name, _)| name.clone()).collect();
        let stored =
            FromHolder::Stored { device: "nbd0".into(), attached: self.export.is_some(), names };
        let descriptors: Vec<_> = self.stored_fds.iter().map(|(_, kept)| kept.as_fd()).collect();
        channel.send(&stored, &descriptors).unwrap();
    }

    /// Gives it the lane and all else, until it is ready or gives up.
    pub(crate) fn grant(&mut self, mut channel: Channel) -> Fate {
        let grant = Grant {
            device: "nbd0".into(),
            lanes: 1,
            ring: self.layout.ring,
            transmit: self.layout.transmit,
            max_payload: self.layout.max_payload,
            keepsakes: self.stored_fds.iter().map(|(name, _)| name.clone()).collect(),
            crashed: false,
            poison_limit: 3,
        };
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![self.ledger.as_fd(), self.lane.as_fd()];
        descriptors.extend(self.stored_fds.iter().map(|(_, kept)| kept.as_fd()));
        channel.send(&FromHolder::Grant(grant), &descriptors).unwrap();
        loop {
            let received = channel.receive_within(EVENT_TIMEOUT).unwrap();
            match received.message {
                FromBackend::Keep { name } => {
                    let kept = received.descriptors.into_iter().next().unwrap();
                    self.stored_fds.push((name, kept));
                    channel.send(&FromHolder::Kept, &[]).unwrap();
                }
                FromBackend::Ready { replayed } => return Fate::Ready { replayed },
                FromBackend::Failed { reason, .. } => return Fate::Failed(reason),
                FromBackend::Hello(_) => panic!("two hellos"),
                FromBackend::Examine => panic!("it was not offered"),
                FromBackend::Poisoned(poison) => panic!("given up: {poison:?}"),
                FromBackend::Left => panic!("it is not serving yet"),
            }
        }
    }

    /// Starts a backend that must get ready.
    pub(crate) fn serve(&mut self, spec: &str) -> Server {
        let server = self.start(&[spec]);
        let (_, fate) = self.receive();
        assert!(matches!(fate, Fate::Ready { .. }), "{fate:?}");
        server
    }

    /// Starts a backend that must fail; what it told the holder, after its message for people
    /// turned out to be the same.
    pub(crate) fn serve_in_vain(&mut self, spec: &str) -> String {
        let server = self.start(&[spec]);
        let (_, fate) = self.receive();
        let Fate::Failed(reason) = fate else {
            panic!("{spec} is served");
        };
        let (status, words) = server.end();
        assert_eq!(status.code(), Some(1));
        assert_eq!(words, format!("nbd-serve: {reason}\n"));
        reason
    }

    pub(crate) fn stored_fd_names(&self) -> Vec<&str> {
        self.stored_fds.iter().map(|(name, _)| &**name).collect()
    }

    /// What a backend has left under a name.
    pub(crate) fn stored_fd(&self, name: &str) -> fs::File {
        let (_, kept) = self.stored_fds.iter().find(|(kept, _)| kept == name).unwrap();
        kept.try_clone().unwrap().into()
    }

    /// A file beside the sockets; see [`Directory::file`].
    pub(crate) fn file(&self, name: &str) -> String {
        self.directory.file(name)
    }

    /// The kernel's end of the lane, once more.
    pub(crate) fn kernel(&self) -> UnixStream {
        self.kernel.try_clone().unwrap()
    }

    pub(crate) fn detach(mut self) {
        self.send(CommandType::DISC, 0, 0, &[]);
    }

    pub(crate) fn send(&mut self, command: CommandType, offset: u64, length: u32, data: &[u8]) {
        let flags = CommandFlags::NONE;
        let request = Request { flags, command, cookie: offset, offset, length };
        self.kernel.write_all(&request.encode()).unwrap();
        self.kernel.write_all(data).unwrap();
    }

    /// Sends a command that has no data, and waits for its reply.
    pub(crate) fn ask(
        &mut self,
        command: CommandType,
        flags: CommandFlags,
        offset: u64,
        length: u32,
    ) -> NbdError {
        let request = Request { flags, command, cookie: 1, offset, length };
        self.kernel.write_all(&request.encode()).unwrap();
        self.reply()
    }

    pub(crate) fn reply(&mut self) -> NbdError {
        let mut header = [0; SimpleReply::LEN];
        self.kernel.read_exact(&mut header).unwrap();
        SimpleReply::decode(&header).unwrap().error
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.send(CommandType::WRITE, offset, data.len() as u32, data);
        assert_eq!(self.reply(), NbdError::SUCCESS);
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.send(CommandType::READ, offset, length, &[]);
        assert_eq!(self.reply(), NbdError::SUCCESS);
        let mut data = vec![0; length as usize];
        self.kernel.read_exact(&mut data).unwrap();
        data
    }
}
