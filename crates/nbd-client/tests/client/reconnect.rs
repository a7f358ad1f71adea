//! Connections that break, at every byte, and servers that change.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nbd_backend::{Backend, Command, Extent, Geometry, ZeroOptions};
use nbd_client::{Options, Remote};

use crate::memory::{Memory, Mortal, serve};
use crate::script::{
    ALL, DATA, DISC, ESHUTDOWN, FLUSH, NONE, Offer, READ, READ_ONLY, STYLES, Server, Style, WRITE,
    at, pair,
};
use crate::tasks::{Outcome, pattern, read, start, write};

#[test]
fn only_unanswered_requests_are_sent_again() {
    for style in STYLES {
        let (server, remote, mut peer) = pair(Offer::new(style));
        let written = write(&remote, 0, &pattern(1, 512));
        let flushed = start(&remote, Command::Flush);
        let wanted = read(&remote, 512, 512);
        let request = peer.request(WRITE);
        peer.request(FLUSH);
        peer.request(READ);
        peer.answer(&request, 0);
        assert_eq!(written.wait(), Outcome::Done);
        drop(peer);
        let later = read(&remote, 1024, 512);
        let mut peer = server.accept(Offer::new(style));
        let request = peer.request(FLUSH);
        peer.answer(&request, 0);
        for (offset, pending) in [(512, wanted), (1024, later)] {
            let request = peer.request(READ);
            assert_eq!(request.offset, offset);
            peer.data(&request, &pattern(offset, 512));
            assert_eq!(pending.wait(), Outcome::Data(pattern(offset, 512)));
        }
        assert_eq!(flushed.wait(), Outcome::Done);
    }
}

#[test]
fn a_partial_reply_of_a_lost_connection_is_dropped() {
    for style in [Style::Structured, Style::Extended] {
        let (server, remote, mut peer) = pair(Offer::new(style));
        let wanted = read(&remote, 0, 1024);
        let request = peer.request(READ);
        let half = peer.chunk(&request, DATA, false, &at(0, &pattern(1, 512)));
        peer.send(&half);
        drop(peer);
        let mut peer = server.accept(Offer::new(style));
        let request = peer.request(READ);
        let whole = pattern(2, 1024);
        let end = peer.chunk(&request, DATA, false, &at(512, &whole[512..]));
        let begin = peer.chunk(&request, DATA, false, &at(0, &whole[..512]));
        let none = peer.chunk(&request, NONE, true, &[]);
        peer.send(&[end, begin, none].concat());
        assert_eq!(wanted.wait(), Outcome::Data(whole));
    }
}

#[test]
fn requests_refused_by_a_server_that_shuts_down_are_sent_again() {
    for style in STYLES {
        let (server, remote, mut peer) = pair(Offer::new(style));
        let pending = write(&remote, 0, &[7; 512]);
        let request = peer.request(WRITE);
        peer.answer(&request, ESHUTDOWN);
        peer.wait_for_end();
        drop(peer);
        let mut peer = server.accept(Offer::new(style));
        let request = peer.request(WRITE);
        assert_eq!(request.payload, [7; 512]);
        peer.answer(&request, 0);
        assert_eq!(pending.wait(), Outcome::Done);
    }
}

#[test]
fn a_server_that_goes_while_it_is_sent_to() {
    let (server, remote, peer) = pair(Offer::new(Style::Structured));
    // More than any socket holds.
    let pending: Vec<_> = (0..64).map(|_| write(&remote, 0, &pattern(3, 1 << 20))).collect();
    drop(peer);
    let mut peer = server.accept(Offer::new(Style::Structured));
    for _ in &pending {
        let request = peer.request(WRITE);
        assert_eq!(request.payload, pattern(3, 1 << 20));
        peer.answer(&request, 0);
    }
    for pending in pending {
        assert_eq!(pending.wait(), Outcome::Done);
    }
}

/// All that a client does with a server, and what has to come of it.
fn converse(remote: &Remote) {
    let data = pattern(1, 512);
    remote.write_at(&data, 512, true).unwrap();
    let mut buffer = vec![0; 1024];
    remote.read_at(&mut buffer, 512).unwrap();
    assert_eq!(buffer[..512], data);
    assert_eq!(buffer[512..], [0; 512]);
    remote.flush().unwrap();
    remote.write_zeroes(512, 512, ZeroOptions::default()).unwrap();
    remote.cache(0, 512).unwrap();
    remote.trim(512, 512, false).unwrap();
    let extents = remote.extents(0, 1 << 20, false).unwrap();
    assert_eq!(extents, [Extent { length: 1 << 20, hole: false, zero: false }]);
    remote.read_at(&mut buffer[..512], 512).unwrap();
    assert_eq!(buffer[..512], [0; 512]);
}

/// How a connection is to end: after so many bytes of input, or of output.
#[derive(Clone, Copy, Debug)]
enum Death {
    Input(usize),
    Output(usize),
}

impl Death {
    fn of(self, stream: UnixStream) -> Mortal {
        let mortal = Mortal::immortal(stream);
        match self {
            Self::Input(input) => Mortal { input, ..mortal },
            Self::Output(output) => Mortal { output, ..mortal },
        }
    }
}

/// Has the conversation while the server's `nth` connection dies; the one before it has no time
/// for anything. Returns what that connection had left to live.
fn die(offer: Offer, nth: usize, death: Death) -> io::Result<(usize, usize)> {
    let server = Server::new();
    let memory: Memory = Mutex::new(vec![0; 1 << 20]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talk = scope.spawn(|| {
            let remote = server.connect();
            converse(&remote);
            drop(remote);
            // No more clients.
            is_over.store(true, Ordering::Relaxed);
            drop(UnixStream::connect(server.path()));
        });
        let mut left = Err(ErrorKind::NotFound.into());
        for index in 0.. {
            let stream = server.accept_raw();
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            if index == nth {
                left = serve(death.of(stream), offer, &memory);
            } else if index < nth {
                // The handshake and not a byte more.
                drop(crate::script::shake(stream, offer));
            } else {
                let _ = serve(Mortal::immortal(stream), offer, &memory);
            }
        }
        talk.join().unwrap();
        left
    })
}

/// Tries all deaths from `first` on, several at a time, until the server survives.
fn sweep(offer: Offer, nth: usize, first: usize, death: impl Fn(usize) -> Death + Sync) -> usize {
    let next = AtomicUsize::new(first);
    let survived = AtomicUsize::new(usize::MAX);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at > survived.load(Ordering::Relaxed) {
                        return;
                    }
                    if die(offer, nth, death(at)).is_ok() {
                        survived.fetch_min(at, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    survived.into_inner()
}

/// Bytes of the handshake that the server receives and sends.
fn handshake(offer: Offer) -> (usize, usize) {
    let server = Server::new();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(server.connect()));
        let mortal = Mortal::immortal(server.accept_raw());
        let peer = crate::script::shake(mortal, offer).unwrap();
        (usize::MAX - peer.stream.input, usize::MAX - peer.stream.output)
    })
}

#[test]
fn the_server_dies_at_every_byte_that_it_sends() {
    for style in STYLES {
        let (_, handshake) = handshake(Offer::new(style));
        let survived = sweep(Offer::new(style), 0, handshake, Death::Output);
        assert!(survived > handshake + 1024 + 512, "{style:?}: {survived}");
    }
}

#[test]
fn the_server_dies_at_every_byte_that_it_receives() {
    for style in STYLES {
        let (handshake, _) = handshake(Offer::new(style));
        let survived = sweep(Offer::new(style), 0, handshake, Death::Input);
        assert!(survived > handshake + 512 + 7 * 28, "{style:?}: {survived}");
    }
}

#[test]
fn the_server_dies_at_every_byte_of_the_second_handshake() {
    for style in STYLES {
        let (input, output) = handshake(Offer::new(style));
        let deaths = (0..input).map(Death::Input).chain((0..output).map(Death::Output));
        let deaths = Mutex::new(deaths);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    while let Some(death) = { deaths.lock().unwrap().next() } {
                        let left = die(Offer::new(style), 1, death);
                        assert!(left.is_err(), "{style:?}, {death:?}");
                    }
                });
            }
        });
    }
}

#[test]
fn an_export_that_has_changed_is_not_written_to() {
    let offer = Offer::new(Style::Structured);
    let changed = [
        offer.size(1 << 19),
        offer.size(0),
        offer.flags(ALL | READ_ONLY),
        offer.flags(ALL & !(1 << 2)),
        offer.flags(ALL & !(1 << 3)),
        offer.flags(ALL & !(1 << 5)),
        offer.flags(ALL & !(1 << 6)),
        offer.flags(ALL & !(1 << 11)),
        offer.blocks(512, 1 << 25),
        offer.blocks(4096, 1 << 25),
        offer.blocks(8192, 1 << 25),
    ];
    for changed in changed {
        let (server, remote, peer) = pair(offer);
        let pending = write(&remote, 0, &[1; 512]);
        drop(peer);
        let mut peer = server.accept(changed);
        assert!(peer.try_request().is_err(), "{changed:?} gets a request");
        assert!(pending.is_waiting());
        // Hints may go, and so may the style; and there may be more of it.
        let larger = Offer::new(Style::Simple).flags(ALL & !(1 << 10)).size(2 << 20);
        let mut peer = server.accept(larger);
        let request = peer.request(WRITE);
        peer.answer(&request, 0);
        assert_eq!(pending.wait(), Outcome::Done);
    }
}

/// The geometry of an export, as a client sees it that is gone by now.
fn geometry(server: &Server, offer: Offer) -> Geometry {
    std::thread::scope(|scope| {
        let geometry = scope.spawn(|| server.connect().geometry());
        let mut peer = server.accept(offer);
        assert_eq!(peer.request(DISC).length, 0);
        drop(peer);
        geometry.join().unwrap()
    })
}

#[test]
fn a_device_that_was_attached_with_less_is_served() {
    let server = Server::new();
    let offer = Offer::new(Style::Structured);
    let mut attached = geometry(&server, offer.blocks(4096, 1 << 25));
    attached.capabilities.trim = false;
    let remote = Remote::for_geometry(server.target(), Options::default(), attached);
    assert_eq!(remote.geometry(), attached);
    let pending = read(&remote, 0, 4096);
    let mut peer = server.accept(offer);
    let request = peer.request(READ);
    peer.data(&request, &[3; 4096]);
    assert_eq!(pending.wait(), Outcome::Data(vec![3; 4096]));
}

#[test]
fn a_client_for_a_geometry_connects_only_when_begun() {
    let server = Server::new();
    let offer = Offer::new(Style::Structured);
    let attached = geometry(&server, offer);
    let remote = Remote::for_geometry(server.target(), Options::default(), attached);
    assert!(server.is_left_alone());
    remote.begin(Vec::new());
    let mut peer = server.accept(offer);
    std::thread::scope(|scope| {
        scope.spawn(|| drop(remote));
        peer.request(DISC);
        drop(peer);
    });
}

#[test]
fn a_peer_that_speaks_another_protocol_is_reported_at_once() {
    let server = Server::new();
    std::thread::scope(|scope| {
        let remote = scope.spawn(|| Remote::connect(server.target(), Options::default()));
        server.accept_raw().write_all(b"220 mail.example ESMTP\r\n").unwrap();
        let error = remote.join().unwrap().unwrap_err();
        assert!(error.target.contains("socket="), "{error}");
    });
    let target = server.target();
    drop(server);
    assert!(Remote::connect(target, Options::default()).is_err());
}
