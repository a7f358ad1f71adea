//! Scripted holders of devices in a runtime directory of their own, and the kernel behind them.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nbd_control::Channel;
use nbd_control::backend::{FromBackend, FromHolder, Grant, Hello};
use nbd_ledger::{Layout, Ledger};
use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(crate) const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

/// A directory that is removed with all that is in it.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("libnbdbackend-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A new file of so many bytes.
    pub(crate) fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.0.join(name);
        fs::File::create_new(&path).unwrap().set_len(size).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left in the temporary directory harms nothing.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All that outlives the backend of a device.
pub(crate) struct Holder {
    name: String,
    listener: UnixListener,
    layout: Layout,
    ledger: OwnedFd,
    lane: OwnedFd,
    kernel: UnixStream,
    pub(crate) stored: Vec<(String, OwnedFd)>,
    /// The connection of the present backend.
    pub(crate) channel: Option<Channel>,
    pub(crate) is_attached: bool,
}

impl Holder {
    pub(crate) fn new(directory: &Directory, index: u32) -> Self {
        let name = format!("nbd{index}");
        let listener = UnixListener::bind(directory.path().join(format!("{name}.join"))).unwrap();
        let layout = Layout {
            ring: 1 << 20,
            transmit: 1 << 20,
            max_payload: 256 << 10,
            ..Layout::with_lanes(1)
        };
        let (lane, kernel) = UnixStream::pair().unwrap();
        kernel.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        Self {
            name,
            listener,
            layout,
            ledger: Ledger::create(&layout).unwrap(),
            lane: lane.into(),
            kernel,
            stored: Vec::new(),
            channel: None,
            is_attached: false,
        }
    }

    /// Accepts the next backend, up to its introduction.
    pub(crate) fn hear(&mut self) -> Hello {
        let stream = self.accept();
        self.converse(stream)
    }

    /// Waits for a connection, with a limit: a program that has failed never comes.
    fn accept(&self) -> UnixStream {
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(EVENT_TIMEOUT).unwrap();
        assert_eq!(poll(&mut fds, limit).unwrap(), 1, "no backend comes to {}", self.name);
        self.listener.accept().unwrap().0
    }

    /// The same for one that was started with a connection.
    pub(crate) fn converse(&mut self, stream: UnixStream) -> Hello {
        let mut channel = Channel::new(stream).unwrap();
        let hello = loop {
            match channel.receive_within(EVENT_TIMEOUT).unwrap().message {
                FromBackend::Hello(hello) => break hello,
                FromBackend::Examine => self.show_stored(&channel),
                other => panic!("no hello: {other:?}"),
            }
        };
        self.channel = Some(channel);
        hello
    }

    /// Accepts a backend that looks at what is stored, and does not answer it yet.
    pub(crate) fn is_asked(&mut self) {
        let mut channel = Channel::new(self.accept()).unwrap();
        let message = channel.receive_within::<FromBackend>(EVENT_TIMEOUT).unwrap().message;
        assert_eq!(message, FromBackend::Examine);
        self.channel = Some(channel);
    }

    /// Whether the backend has said nothing more.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.channel.as_mut().unwrap().try_receive::<FromBackend>().unwrap().is_none()
    }

    /// Answers it.
    pub(crate) fn show(&mut self) {
        self.show_stored(self.channel.as_ref().unwrap());
    }

    /// The introduction of a backend that was shown what is stored.
    pub(crate) fn hello(&mut self) -> Hello {
        let channel = self.channel.as_mut().unwrap();
        match channel.receive_within(EVENT_TIMEOUT).unwrap().message {
            FromBackend::Hello(hello) => hello,
            other => panic!("no hello: {other:?}"),
        }
    }

    fn show_stored(&self, channel: &Channel) {
        let names = self.stored.iter().map(|(name, _)| name.clone()).collect();
        let shown =
            FromHolder::Stored { device: self.name.clone(), attached: self.is_attached, names };
        let descriptors: Vec<_> = self.stored.iter().map(|(_, fd)| fd.as_fd()).collect();
        channel.send(&shown, &descriptors).unwrap();
    }

    /// Refuses the backend that was heard.
    pub(crate) fn refuse(&mut self, reason: &str) {
        let refusal = FromHolder::Refusal { reason: reason.into() };
        self.channel.take().unwrap().send(&refusal, &[]).unwrap();
    }

    /// Grants the backend the lanes; the number of requests that it recovers, or why it fails.
    pub(crate) fn grant(&mut self) -> Result<u32, String> {
        let grant = Grant {
            device: self.name.clone(),
            lanes: 1,
            ring: self.layout.ring,
            transmit: self.layout.transmit,
            max_payload: self.layout.max_payload,
            keepsakes: self.stored.iter().map(|(name, _)| name.clone()).collect(),
            crashed: false,
            poison_limit: 3,
        };
        let mut channel = self.channel.take().unwrap();
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![self.ledger.as_fd(), self.lane.as_fd()];
        descriptors.extend(self.stored.iter().map(|(_, fd)| fd.as_fd()));
        channel.send(&FromHolder::Grant(grant), &descriptors).unwrap();
        drop(descriptors);
        loop {
            let received = channel.receive_within(EVENT_TIMEOUT).unwrap();
            match received.message {
                FromBackend::Keep { name } if self.is_attached => {
                    let reason = format!("{name} comes too late");
                    channel.send(&FromHolder::Refusal { reason }, &[]).unwrap();
                }
                FromBackend::Keep { name } => {
                    self.stored.push((name, received.descriptors.into_iter().next().unwrap()));
                    channel.send(&FromHolder::Kept, &[]).unwrap();
                }
                FromBackend::Ready { replayed } => {
                    self.is_attached = true;
                    self.channel = Some(channel);
                    return Ok(replayed);
                }
                FromBackend::Failed { reason, .. } => return Err(reason),
                other => panic!("out of place: {other:?}"),
            }
        }
    }

    /// Waits until the backend says that it is done with the device, and lives on.
    pub(crate) fn is_left(&mut self) {
        let mut channel = self.channel.take().unwrap();
        let message = channel.receive_within::<FromBackend>(EVENT_TIMEOUT).unwrap().message;
        assert_eq!(message, FromBackend::Left);
    }

    /// Accepts a backend that must serve; the number of requests that it recovers.
    pub(crate) fn serve(&mut self) -> u32 {
        self.hear();
        self.grant().unwrap()
    }

    pub(crate) fn send(&mut self, request: Request, data: &[u8]) {
        self.kernel.write_all(&request.encode()).unwrap();
        self.kernel.write_all(data).unwrap();
    }

    /// Ends the lane as the kernel does in a detach.
    pub(crate) fn disconnect(&mut self) {
        self.send(request(CommandType::DISC, 0, 0), &[]);
    }

    /// The next reply: its cookie and its error.
    pub(crate) fn reply(&mut self) -> (u64, NbdError) {
        let mut header = [0; SimpleReply::LEN];
        self.kernel.read_exact(&mut header).unwrap();
        let reply = SimpleReply::decode(&header).unwrap();
        (reply.cookie, reply.error)
    }

    /// Whether nothing has come from the backend.
    pub(crate) fn has_no_reply(&mut self) -> bool {
        self.kernel.set_nonblocking(true).unwrap();
        let received = self.kernel.read(&mut [0]);
        self.kernel.set_nonblocking(false).unwrap();
        received.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Sends a request that has no data and waits for its reply.
    pub(crate) fn ask(&mut self, request: Request) -> NbdError {
        self.send(request, &[]);
        self.reply().1
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.send(request(CommandType::WRITE, offset, data.len() as u32), data);
        assert_eq!(self.reply(), (offset, NbdError::SUCCESS));
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.ask(request(CommandType::READ, offset, length)), NbdError::SUCCESS);
        self.data(length)
    }

    pub(crate) fn data(&mut self, length: u32) -> Vec<u8> {
        let mut data = vec![0; length as usize];
        self.kernel.read_exact(&mut data).unwrap();
        data
    }
}

/// A request whose cookie is its offset.
pub(crate) fn request(command: CommandType, offset: u64, length: u32) -> Request {
    Request { flags: CommandFlags::NONE, command, cookie: offset, offset, length }
}
