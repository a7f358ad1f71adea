//! A server of the network in its transmission phase: whatever a client sends, it is answered in
//! whole replies or not at all, and the end comes.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use libfuzzer_sys::fuzz_target;
use nbd_backend::{Backend, Capabilities, Command, Geometry, InlineBackend, ZeroOptions};
use nbd_net::address::Listen;
use nbd_net::listener::Listeners;
use nbd_net::testing::Scratch;
use nbd_proto::handshake::{ClientOptions, ReplyStyle};
use nbd_proto::{ExtendedReplyChunk, NbdError, SimpleReply, StructuredReplyChunk};
use nbd_server::testing::RawClient;
use nbd_server::{Export, Limits, Security, Server};

const SIZE: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    let Some((how, said)) = bytes.split_first() else {
        return;
    };
    let wishes = ClientOptions {
        structured: how & 1 != 0,
        extended: how & 2 != 0,
        ..ClientOptions::new("")
    };
    let mut client = RawClient::shake_hands(connect(), wishes).expect("a handshake");
    let style = client.established.style;
    let mut stream = client.stream.try_clone().expect("a descriptor");
    let said = said.to_vec();
    // It may end the connection while we still talk.
    let talking = thread::spawn(move || {
        let _ = stream.write_all(&said);
        let _ = stream.shutdown(Shutdown::Write);
    });
    let mut answers = Vec::new();
    let _ = client.stream.read_to_end(&mut answers);
    let _ = talking.join();
    // A simple reply does not tell whether data follows.
    match style {
        ReplyStyle::Simple => {
            if let Some(head) = answers.first_chunk() {
                SimpleReply::decode(head).expect("a reply");
            }
        }
        ReplyStyle::Structured => {
            each(&answers, |head| {
                let chunk = StructuredReplyChunk::decode(head).expect("a chunk");
                u64::from(chunk.length)
            });
        }
        ReplyStyle::Extended => {
            each(&answers, |head| ExtendedReplyChunk::decode(head).expect("a chunk").length);
        }
    }
});

/// Takes chunks apart: all of them are whole.
fn each<const N: usize>(mut answers: &[u8], length_of: impl Fn(&[u8; N]) -> u64) {
    while !answers.is_empty() {
        let (head, rest) = answers.split_first_chunk().expect("a whole head");
        answers = rest.get(length_of(head) as usize..).expect("a whole payload");
    }
}

/// The server lives as long as the process.
fn connect() -> UnixStream {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    let scratch = SCRATCH.get_or_init(|| {
        let scratch = Scratch::new();
        let listen = Listen::Unix(scratch.path().join("socket"));
        let listeners = Listeners::bind(&[listen]).expect("a socket");
        let disk = Arc::new(Disk(Mutex::new(vec![0x5a; SIZE])));
        let export = Export::new(String::new(), "fuzz".into(), disk);
        let limits = Limits { max_payload: 16 << 10, in_flight: 4, ..Limits::default() };
        let server = Server::new(vec![export], Security::None, limits);
        thread::spawn(move || {
            let (_stop, stopped) = UnixStream::pair().expect("a socket pair");
            server.serve(listeners, stopped.as_fd())
        });
        scratch
    });
    UnixStream::connect(scratch.path().join("socket")).expect("a connection")
}

/// Memory that checks what reaches it: requests were checked before.
struct Disk(Mutex<Vec<u8>>);

impl Disk {
    fn with(&self, offset: u64, length: u64, act: impl FnOnce(&mut [u8])) {
        let mut data = self.0.lock().expect("no panic");
        let range = offset as usize..(offset + length) as usize;
        act(data.get_mut(range).expect("a range within the export"));
    }
}

impl Backend for Disk {
    fn geometry(&self) -> Geometry {
        let capabilities = Capabilities {
            volatile: true,
            trim: true,
            write_zeroes: true,
            cache: true,
            extents: true,
            unaligned: true,
            ..Capabilities::default()
        };
        Geometry { size: SIZE as u64, block_size: 512, capabilities }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.with(offset, buffer.len() as u64, |data| buffer.copy_from_slice(data));
        fail_at(offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: bool) -> std::io::Result<()> {
        self.with(offset, data.len() as u64, |place| place.copy_from_slice(data));
        fail_at(offset)
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> std::io::Result<()> {
        self.with(offset, length, |data| data.fill(0));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, _how: ZeroOptions) -> std::io::Result<()> {
        self.trim(offset, length, false)
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        Some(self)
    }
}

impl InlineBackend for Disk {
    fn never_blocks(&self, command: &Command) -> bool {
        command.range().0.is_multiple_of(2)
    }
}

fn fail_at(offset: u64) -> std::io::Result<()> {
    match offset {
        7 | 8 => Err(std::io::Error::from_raw_os_error(NbdError::ENOSPC.to_errno())),
        _ => Ok(()),
    }
}
