//! A backend that waits and fails on request, and a running server.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use nbd_backend::{Backend, Capabilities, Command, Extent, Geometry, ZeroOptions};
use nbd_net::address::Listen;
use nbd_net::listener::Listeners;
use nbd_net::testing::Scratch;
use nbd_proto::handshake::{ReplyStyle, Wishes};
use nbd_server::testing::RawClient;
use nbd_server::{Export, Limits, Security, Server};

pub(crate) const SIZE: u64 = 1 << 20;
/// Reads that begin here wait for the gate to open.
pub(crate) const SLOW: u64 = 512 << 10;
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
    /// How many slow reads have begun.
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

    /// The same on a spinning disk.
    pub(crate) fn spinning() -> Arc<Self> {
        let mut disk = Self::new(1);
        Arc::get_mut(&mut disk).unwrap().geometry.capabilities.rotational = true;
        disk
    }

    /// Lets slow reads go on.
    pub(crate) fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    /// Waits until a slow read has begun.
    pub(crate) fn wait_for_slow_read(&self) {
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

/// The disk as a backend: a server wants to own it, and the test keeps it.
struct Shared(Arc<Disk>);

impl Backend for Shared {
    fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        failing(offset)?;
        if offset == SLOW {
            *self.0.begun.lock().unwrap() += 1;
            self.0.opened.notify_all();
            let is_open = self.0.is_open.lock().unwrap();
            drop(self.0.opened.wait_while(is_open, |is_open| !*is_open).unwrap());
        }
        let at = offset as usize;
        buffer.copy_from_slice(&self.0.data.lock().unwrap()[at..at + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
        failing(offset)?;
        let at = offset as usize;
        self.0.data.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let name = std::thread::current().name().unwrap_or_default().into();
        self.0.flushers.lock().unwrap().push(name);
        Ok(())
    }

    fn is_local(&self, command: &Command) -> bool {
        matches!(command, Command::Flush | Command::Read { .. })
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

    fn is_quick(&self, command: &Command) -> bool {
        // Some of each kind, so that both ways are taken.
        matches!(command, Command::Read { offset, .. } | Command::Write { offset, .. } if offset % 8192 == 0 && *offset < SLOW)
    }

    /// The first half is data, the second a hole.
    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        let data = SLOW.saturating_sub(offset).min(length);
        let extent = |length, hole| Extent { length, hole, zero: hole };
        let extents = [extent(data, false), extent(length - data, true)];
        let some = extents.into_iter().filter(|extent| extent.length > 0);
        Ok(some.take(if one { 1 } else { 2 }).collect())
    }
}

/// A running server.
pub(crate) struct World {
    pub(crate) disk: Arc<Disk>,
    scratch: Scratch,
    stop: UnixStream,
    server: Option<JoinHandle<io::Result<()>>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Disk::new(1), Limits::default())
    }

    /// A disk as the default export, and as `ro`, which is read-only.
    pub(crate) fn with(disk: Arc<Disk>, limits: Limits) -> Self {
        let scratch = Scratch::new();
        let listen = Listen::Unix(scratch.path().join("socket"));
        let listeners = Listeners::bind(&[listen]).unwrap();
        let export = |name: &str| {
            Export::new(name.into(), "a test".into(), Arc::new(Shared(Arc::clone(&disk))))
        };
        let exports = vec![export(""), export("ro").read_only()];
        let server = Server::new(exports, Security::None, limits);
        let (stop, stopped) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || server.serve(listeners, stopped.as_fd()));
        Self { disk, scratch, stop, server: Some(server) }
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.scratch.path().join("socket")).unwrap()
    }

    /// A client in the transmission phase, with block status where that can be had.
    pub(crate) fn client(&self, style: ReplyStyle) -> RawClient {
        self.client_of("", style)
    }

    pub(crate) fn client_of(&self, name: &str, style: ReplyStyle) -> RawClient {
        let wishes = Wishes {
            structured: style != ReplyStyle::Simple,
            extended: style == ReplyStyle::Extended,
            ..Wishes::new(name)
        };
        RawClient::shake_hands(self.connect(), wishes).unwrap()
    }

    /// Asks the server to end.
    pub(crate) fn stop(&mut self) {
        use std::io::Write;
        self.stop.write_all(b"x").unwrap();
    }

    /// Waits for its end.
    pub(crate) fn join(&mut self) {
        self.server.take().unwrap().join().unwrap().unwrap();
    }

    pub(crate) fn has_socket(&self) -> bool {
        self.scratch.path().join("socket").exists()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.server.is_some() && !std::thread::panicking() {
            self.disk.open();
            self.stop();
            self.join();
        }
    }
}
