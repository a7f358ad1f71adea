//! Servers that do as they are told. They speak raw bytes, written down here once more: a mistake
//! in `nbd-proto` must not cancel itself out.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nbd_client::{Options, Remote, Target};

/// Only a hang takes so long.
pub(crate) const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZERO: u16 = 6;
pub(crate) const STATUS: u16 = 7;

pub(crate) const NONE: u16 = 0;
pub(crate) const DATA: u16 = 1;
pub(crate) const HOLE: u16 = 2;
pub(crate) const EXTENTS: u16 = 5;
pub(crate) const EXTENTS_EXT: u16 = 6;
pub(crate) const ERROR: u16 = 0x8001;
pub(crate) const ERROR_OFFSET: u16 = 0x8002;

pub(crate) const EIO: u32 = 5;
pub(crate) const ESHUTDOWN: u32 = 108;

/// Flags, read-only, flush, FUA, rotational, trim, zeroes, DF, multi, resize, cache, fast zero.
pub(crate) const ALL: u16 = 0b1100_0110_1101;
pub(crate) const READ_ONLY: u16 = 1 << 1;
pub(crate) const MULTI: u16 = 1 << 8;

/// The number of the metadata context.
pub(crate) const CONTEXT: u32 = 42;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

pub(crate) const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// What a server offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    pub(crate) blocks: Option<[u32; 3]>,
    pub(crate) style: Style,
}

impl Offer {
    pub(crate) fn new(style: Style) -> Self {
        Self { size: 1 << 20, flags: ALL, blocks: Some([1, 4096, 1 << 25]), style }
    }

    pub(crate) fn size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    pub(crate) fn flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }

    pub(crate) fn blocks(self, minimum: u32, maximum: u32) -> Self {
        Self { blocks: Some([minimum, 4096.max(minimum), maximum]), ..self }
    }
}

/// A listening server.
pub(crate) struct Server {
    directory: PathBuf,
    pub(crate) listener: UnixListener,
}

impl Server {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-client-test-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        let listener = UnixListener::bind(directory.join("s")).unwrap();
        Self { directory, listener }
    }

    pub(crate) fn target(&self) -> Target {
        self.target_with("")
    }

    pub(crate) fn target_with(&self, parameters: &str) -> Target {
        format!("nbd+unix:///?socket={}{parameters}", self.path().display()).parse().unwrap()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join("s")
    }

    /// Stops listening, so that clients find no server.
    pub(crate) fn leave(&self) {
        fs::remove_file(self.path()).unwrap();
    }

    /// Comes back.
    pub(crate) fn return_(&mut self) {
        self.listener = UnixListener::bind(self.path()).unwrap();
    }

    /// Whether no client wants to connect now.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        let result = self.listener.accept();
        self.listener.set_nonblocking(false).unwrap();
        result.is_err()
    }

    pub(crate) fn connect(&self) -> Remote {
        Remote::connect(self.target(), Options::default()).unwrap()
    }

    /// The next connection, before the handshake.
    pub(crate) fn accept_raw(&self) -> UnixStream {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream
    }

    /// The next connection, after the handshake.
    pub(crate) fn accept(&self, offer: Offer) -> Peer {
        shake(self.accept_raw(), offer).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A server and a client that have agreed.
/// What comes last is dropped first: a client waits for its server to close.
pub(crate) fn pair(offer: Offer) -> (Server, Remote, Peer) {
    pair_with(offer, Options::default())
}

pub(crate) fn pair_with(offer: Offer, options: Options) -> (Server, Remote, Peer) {
    let server = Server::new();
    let (remote, peer) = std::thread::scope(|scope| {
        let remote = scope.spawn(|| Remote::connect(server.target(), options).unwrap());
        let peer = server.accept(offer);
        (remote.join().unwrap(), peer)
    });
    (server, remote, peer)
}

/// The server's side of a connection in the transmission phase.
pub(crate) struct Peer<S = UnixStream> {
    pub(crate) stream: S,
    pub(crate) style: Style,
}

/// A request that has come.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) payload: Vec<u8>,
}

impl<S: Read + Write> Peer<S> {
    /// The next request; an error at the end of the stream.
    pub(crate) fn try_request(&mut self) -> io::Result<Request> {
        let mut head = [0; 24];
        self.stream.read_exact(&mut head)?;
        let extended = self.style == Style::Extended;
        let magic = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        assert_eq!(u32_at(&head, 0), magic);
        let length =
            if extended { u64_at(&self.read(8)?, 0) } else { u64::from(u32_at(&self.read(4)?, 0)) };
        let (flags, command) = (u16_at(&head, 4), u16_at(&head, 6));
        if extended {
            assert_eq!(flags & 1 << 5 != 0, command == WRITE, "payload flag of {command}");
        }
        let payload = if command == WRITE { self.read(length as usize)? } else { Vec::new() };
        let (cookie, offset) = (u64_at(&head, 8), u64_at(&head, 16));
        Ok(Request { flags, command, cookie, offset, length, payload })
    }

    /// The next request, which has to be such a one.
    pub(crate) fn request(&mut self, command: u16) -> Request {
        let request = self.try_request().unwrap();
        assert_eq!(request.command, command, "{request:?}");
        request
    }

    fn read(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Answers with success, or with an error; a read needs [`data`](Self::data).
    pub(crate) fn answer(&mut self, request: &Request, error: u32) {
        let bytes = match (self.style, error) {
            (Style::Simple, _) => simple(request, error),
            (_, 0) => self.chunk(request, NONE, true, &[]),
            (_, _) => self.chunk(request, ERROR, true, &error_payload(error, "")),
        };
        self.send(&bytes);
    }

    /// Answers a read.
    pub(crate) fn data(&mut self, request: &Request, data: &[u8]) {
        let bytes = match self.style {
            Style::Simple => [&simple(request, 0), data].concat(),
            _ => self.chunk(request, DATA, true, &at(request.offset, data)),
        };
        self.send(&bytes);
    }

    /// A chunk in the style that was agreed on.
    pub(crate) fn chunk(
        &self,
        request: &Request,
        kind: u16,
        is_last: bool,
        payload: &[u8],
    ) -> Vec<u8> {
        let extended = self.style == Style::Extended;
        let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(u16::from(is_last).to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(request.cookie.to_be_bytes());
        if extended {
            bytes.extend(request.offset.to_be_bytes());
            bytes.extend((payload.len() as u64).to_be_bytes());
        } else {
            bytes.extend((payload.len() as u32).to_be_bytes());
        }
        bytes.extend(payload);
        bytes
    }
}

impl Peer {
    /// Waits until the client has ended its side.
    pub(crate) fn wait_for_end(&mut self) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
    }
}

pub(crate) fn simple(request: &Request, error: u32) -> Vec<u8> {
    let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(request.cookie.to_be_bytes());
    bytes
}

/// Bytes with an offset before them.
pub(crate) fn at(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes(), bytes].concat()
}

pub(crate) fn hole(offset: u64, length: u32) -> Vec<u8> {
    at(offset, &length.to_be_bytes())
}

pub(crate) fn error_payload(error: u32, words: &str) -> Vec<u8> {
    let mut bytes = error.to_be_bytes().to_vec();
    bytes.extend((words.len() as u16).to_be_bytes());
    bytes.extend(words.as_bytes());
    bytes
}

/// The payload that describes extents in the style.
pub(crate) fn extents(style: Style, context: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = context.to_be_bytes().to_vec();
    if style == Style::Extended {
        bytes.extend((extents.len() as u32).to_be_bytes());
    }
    for (length, flags) in extents {
        if style == Style::Extended {
            bytes.extend(length.to_be_bytes());
            bytes.extend(flags.to_be_bytes());
        } else {
            bytes.extend((*length as u32).to_be_bytes());
            bytes.extend((*flags as u32).to_be_bytes());
        }
    }
    bytes
}

/// The server's side of the handshake.
pub(crate) fn shake<S: Read + Write>(mut stream: S, offer: Offer) -> io::Result<Peer<S>> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let mut style = Style::Simple;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        assert_eq!(&head[..8], b"IHAVEOPT");
        let option = u32_at(&head, 8);
        let mut data = vec![0; u32_at(&head, 12) as usize];
        stream.read_exact(&mut data)?;
        let agree = |wanted: Style| offer.style == wanted;
        match option {
            // Structured replies, extended headers.
            8 if agree(Style::Structured) => {
                style = Style::Structured;
                stream.write_all(&reply(option, 1, &[]))?;
            }
            11 if agree(Style::Extended) => {
                style = Style::Extended;
                stream.write_all(&reply(option, 1, &[]))?;
            }
            // A metadata context.
            10 if style != Style::Simple => {
                let mut context = CONTEXT.to_be_bytes().to_vec();
                context.extend(b"base:allocation");
                stream.write_all(&reply(option, 4, &context))?;
                stream.write_all(&reply(option, 1, &[]))?;
            }
            // Go.
            7 => {
                let mut export = vec![0, 0];
                export.extend(offer.size.to_be_bytes());
                export.extend(offer.flags.to_be_bytes());
                stream.write_all(&reply(option, 3, &export))?;
                if let Some(blocks) = offer.blocks {
                    let mut info = vec![0, 3];
                    info.extend(blocks.into_iter().flat_map(u32::to_be_bytes));
                    stream.write_all(&reply(option, 3, &info))?;
                }
                stream.write_all(&reply(option, 1, &[]))?;
                return Ok(Peer { stream, style });
            }
            _ => stream.write_all(&reply(option, 1 << 31 | 1, &[]))?,
        }
    }
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}
