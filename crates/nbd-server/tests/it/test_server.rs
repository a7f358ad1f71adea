//! A backend that blocks and fails on request, and a running server.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use nbd_backend::{Backend, Capabilities, Command, Extent, Geometry, InlineBackend, ZeroOptions};
use nbd_net::address::{Address, Listen};
use nbd_net::listener::Listeners;
use nbd_net::testing::Scratch;
use nbd_proto::handshake::{ClientOptions, ReplyStyle};
use nbd_server::testing::RawClient;
use nbd_server::{Export, Limits, Security, Server};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(crate) const SIZE: u64 = 1 << 20;
/// Reads at this offset block until [`Disk::open`] ...
pub(crate) const SLOW: u64 = 512 << 10;
/// ... and so do writes at this offset.
pub(crate) const SLOW_WRITE: u64 = 640 << 10;
/// Reads and writes that begin at [`BAD`] plus an errno fail with it.
pub(crate) const BAD: u64 = 768 << 10;
pub(crate) const STYLES: [ReplyStyle; 3] =
    [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended];

/// Memory, part of which is slow or bad.
pub(crate) struct Disk {
    data: Mutex<Vec<u8>>,
    is_open: Mutex<bool>,
    opened: Condvar,
    geometry: Geometry,
    /// By name, the threads that flushed.
    flushers: Mutex<Vec<String>>,
    /// How many slow reads and writes have begun.
    begun: Mutex<u32>,
}

impl Disk {
    pub(crate) fn new(block_size: u32) -> Arc<Self> {
        let capabilities = Capabilities {
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            cache: true,
            extents: true,
            unaligned: block_size == 1,
            ..Capabilities::default()
        };
        let block_size = block_size.max(512);
        Arc::new(Self {
            data: Mutex::new(vec![0; SIZE as usize]),
            is_open: Mutex::new(false),
            opened: Condvar::new(),
            geometry: Geometry { size: SIZE, block_size, capabilities },
            flushers: Mutex::default(),
            begun: Mutex::default(),
        })
    }

    /// The same disk with the flag of a spinning one.
    pub(crate) fn spinning() -> Arc<Self> {
        let mut disk = Self::new(1);
        Arc::get_mut(&mut disk).unwrap().geometry.capabilities.rotational = true;
        disk
    }

    /// Lets slow reads and writes continue.
    pub(crate) fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn wait_at_the_gate(&self) {
        *self.begun.lock().unwrap() += 1;
        self.opened.notify_all();
        let is_open = self.is_open.lock().unwrap();
        drop(self.opened.wait_while(is_open, |is_open| !*is_open).unwrap());
    }

    /// How many slow reads and writes have begun.
    pub(crate) fn begun(&self) -> u32 {
        *self.begun.lock().unwrap()
    }

    /// Waits until a slow read or write has begun.
    pub(crate) fn wait_for_slow(&self) {
        let begun = self.begun.lock().unwrap();
        drop(self.opened.wait_while(begun, |begun| *begun == 0).unwrap());
    }

    /// For each flush since the last call: whether a worker executed it.
    pub(crate) fn flushed_by_workers(&self) -> Vec<bool> {
        let names = std::mem::take(&mut *self.flushers.lock().unwrap());
        names.iter().map(|name| name.starts_with("worker-")).collect()
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.data.lock().unwrap().clone()
    }
}

fn failing(offset: u64) -> io::Result<()> {
    match offset.checked_sub(BAD) {
        Some(errno @ 1..=200) => Err(io::Error::from_raw_os_error(errno as i32)),
        _ => Ok(()),
    }
}

/// The disk as a backend: the server owns this, and the test keeps the disk.
struct Shared(Arc<Disk>);

impl Backend for Shared {
    fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        failing(offset)?;
        if offset == SLOW {
            self.0.wait_at_the_gate();
        }
        let at = offset as usize;
        buffer.copy_from_slice(&self.0.data.lock().unwrap()[at..at + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
        failing(offset)?;
        if offset == SLOW_WRITE {
            self.0.wait_at_the_gate();
        }
        let at = offset as usize;
        self.0.data.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let name = std::thread::current().name().unwrap_or_default().into();
        self.0.flushers.lock().unwrap().push(name);
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> io::Result<()> {
        self.write_at(&vec![0; length as usize], offset, false)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        if how.fast_only && how.no_hole {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.write_at(&vec![0; length as usize], offset, false)
    }

    /// The first half is data, the second a hole.
    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        let data = SLOW.saturating_sub(offset).min(length);
        let extent = |length, hole| Extent { length, hole, zero: hole };
        let extents = [extent(data, false), extent(length - data, true)];
        let some = extents.into_iter().filter(|extent| extent.length > 0);
        Ok(some.take(if one { 1 } else { 2 }).collect())
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        Some(self)
    }
}

impl InlineBackend for Shared {
    fn never_blocks(&self, command: &Command) -> bool {
        // Some requests of each kind, so that inline execution and workers are both tested.
        matches!(command, Command::Read { offset, .. } | Command::Write { offset, .. } if offset % 8192 == 0 && *offset < SLOW)
    }

    fn may_block_inline(&self, command: &Command) -> bool {
        matches!(command, Command::Flush | Command::Read { .. })
    }
}

/// A running server.
pub(crate) struct TestServer {
    pub(crate) disk: Arc<Disk>,
    scratch: Scratch,
    tcp: SocketAddr,
    stop: UnixStream,
    server: Option<JoinHandle<io::Result<()>>>,
}

impl TestServer {
    pub(crate) fn new() -> Self {
        Self::with(Disk::new(1), Limits::default())
    }

    /// A disk as the default export, and as `ro`, which is read-only.
    pub(crate) fn with(disk: Arc<Disk>, limits: Limits) -> Self {
        let scratch = Scratch::new();
        let unix = Listen::Unix(scratch.path().join("socket"));
        let listeners = Listeners::bind(&[unix, "tcp:127.0.0.1:0".parse().unwrap()]).unwrap();
        let tcp = listeners.addresses().iter().find_map(|address| match address {
            Address::Tcp { host, port } => Some(format!("{host}:{port}").parse().unwrap()),
            _ => None,
        });
        let export = |name: &str| {
            Export::new(name.into(), "a test".into(), Arc::new(Shared(Arc::clone(&disk))))
        };
        let exports = vec![export(""), export("ro").read_only()];
        let server = Server::new(exports, Security::None, limits);
        let (stop, stopped) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || server.serve(listeners, stopped.as_fd()));
        Self { disk, scratch, tcp: tcp.unwrap(), stop, server: Some(server) }
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.scratch.path().join("socket")).unwrap()
    }

    /// A connection by TCP; the server may close it at once.
    pub(crate) fn connect_tcp(&self) -> UnixStream {
        let stream = TcpStream::connect(self.tcp).unwrap();
        // Reads and writes of a stream socket are the same for TCP and unix.
        OwnedFd::from(stream).into()
    }

    /// A client in the transmission phase, with block status where the style allows it.
    pub(crate) fn client(&self, style: ReplyStyle) -> RawClient {
        self.client_of("", style)
    }

    pub(crate) fn client_of(&self, name: &str, style: ReplyStyle) -> RawClient {
        let wishes = ClientOptions {
            structured: style != ReplyStyle::Simple,
            extended: style == ReplyStyle::Extended,
            ..ClientOptions::new(name)
        };
        RawClient::shake_hands(self.connect(), wishes).unwrap()
    }

    /// Asks the server to stop.
    pub(crate) fn stop(&mut self) {
        use std::io::Write;
        self.stop.write_all(b"x").unwrap();
    }

    /// Waits until the server has stopped.
    pub(crate) fn join(&mut self) {
        self.server.take().unwrap().join().unwrap().unwrap();
    }

    pub(crate) fn has_socket(&self) -> bool {
        self.scratch.path().join("socket").exists()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if self.server.is_some() && !std::thread::panicking() {
            self.disk.open();
            self.stop();
            self.join();
        }
    }
}

/// Whether the end of the stream or a byte can be read.
pub(crate) fn has_ended(client: &mut RawClient) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let read = client.stream.read(&mut [0]);
    client.stream.set_nonblocking(false).unwrap();
    !matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Whether the server has closed the connection, even if bytes are still unread.
pub(crate) fn is_hung_up(client: &RawClient) -> bool {
    let mut fds = [PollFd::new(client.stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).unwrap();
    fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}
