//! Servers that break the protocol, named after what they do: the client hangs up, connects
//! again, and asks again.

use nbd_backend::{Command, Extent};

use crate::script::{
    self, CONTEXT, DATA, EIO, ERROR, EXTENTS, EXTENTS_EXT, HOLE, NONE, Offer, Peer, READ, Request,
    STATUS, Style, WRITE, at, error_payload, extents, hole, pair,
};
use crate::tasks::{Outcome, pattern, read, start, write};

/// A read of this range gets a reply that must not be taken.
const OFFSET: u64 = 4096;
const LENGTH: u32 = 1024;

fn bad_read(style: Style, reply: impl Fn(&Peer, &Request) -> Vec<u8>) {
    let (server, remote, mut peer) = pair(Offer::new(style));
    let pending = read(&remote, OFFSET, LENGTH);
    let request = peer.request(READ);
    let bytes = reply(&peer, &request);
    peer.send(&bytes);
    peer.wait_for_end();
    drop(peer);
    let mut peer = server.accept(Offer::new(style));
    let request = peer.request(READ);
    assert_eq!((request.offset, request.length), (OFFSET, LENGTH.into()));
    assert!(pending.is_waiting());
    peer.data(&request, &pattern(1, LENGTH as usize));
    assert_eq!(pending.wait(), Outcome::Data(pattern(1, LENGTH as usize)));
}

fn bad_write(style: Style, reply: impl Fn(&Peer, &Request) -> Vec<u8>) {
    let (server, remote, mut peer) = pair(Offer::new(style));
    let pending = write(&remote, 0, &[1; 512]);
    let request = peer.request(WRITE);
    let bytes = reply(&peer, &request);
    peer.send(&bytes);
    peer.wait_for_end();
    drop(peer);
    let mut peer = server.accept(Offer::new(style));
    let request = peer.request(WRITE);
    assert_eq!(request.payload, [1; 512]);
    peer.answer(&request, 0);
    assert_eq!(pending.wait(), Outcome::Done);
}

fn bad_status(style: Style, reply: impl Fn(&Peer, &Request) -> Vec<u8>) {
    let (server, remote, mut peer) = pair(Offer::new(style));
    let pending = start(&remote, Command::BlockStatus { offset: 0, length: 4096, one: false });
    let request = peer.request(STATUS);
    let bytes = reply(&peer, &request);
    peer.send(&bytes);
    peer.wait_for_end();
    drop(peer);
    let mut peer = server.accept(Offer::new(style));
    let request = peer.request(STATUS);
    let kind = if style == Style::Extended { EXTENTS_EXT } else { EXTENTS };
    let good = peer.chunk(&request, kind, true, &extents(style, CONTEXT, &[(4096, 3)]));
    peer.send(&good);
    let extent = Extent { length: 4096, hole: true, zero: true };
    assert_eq!(pending.wait(), Outcome::Extents(vec![extent]));
}

fn other_cookie(request: &Request) -> Request {
    Request { cookie: request.cookie ^ 1 << 40, ..request.clone() }
}

#[test]
fn server_sends_no_reply_magic() {
    for style in script::STYLES {
        bad_read(style, |_, _| b"HTTP/1.1 400 Bad Request".to_vec());
    }
}

#[test]
fn server_answers_unknown_cookie() {
    for style in script::STYLES {
        bad_read(style, |peer, request| match style {
            Style::Simple => script::simple(&other_cookie(request), EIO),
            _ => peer.chunk(&other_cookie(request), NONE, true, &[]),
        });
        // A slot that does not exist.
        bad_write(style, |peer, request| {
            let request = Request { cookie: u64::MAX, ..request.clone() };
            match style {
                Style::Simple => script::simple(&request, 0),
                _ => peer.chunk(&request, NONE, true, &[]),
            }
        });
    }
}

#[test]
fn server_answers_twice() {
    let (server, remote, mut peer) = pair(Offer::new(Style::Structured));
    let pending = write(&remote, 0, &[1; 512]);
    let request = peer.request(WRITE);
    peer.answer(&request, 0);
    assert_eq!(pending.wait(), Outcome::Done);
    let pending = read(&remote, 0, 512);
    let _ = peer.request(READ);
    peer.answer(&request, 0);
    peer.wait_for_end();
    drop(peer);
    let mut peer = server.accept(Offer::new(Style::Structured));
    let request = peer.request(READ);
    peer.data(&request, &[5; 512]);
    assert_eq!(pending.wait(), Outcome::Data(vec![5; 512]));
}

#[test]
fn server_sends_short_data() {
    for style in [Style::Structured, Style::Extended] {
        bad_read(style, |peer, request| {
            peer.chunk(request, DATA, true, &at(OFFSET, &[1; LENGTH as usize - 1]))
        });
        bad_read(style, |peer, request| peer.chunk(request, NONE, true, &[]));
        bad_read(style, |peer, request| {
            let first = peer.chunk(request, HOLE, false, &hole(OFFSET, 512));
            [first, peer.chunk(request, NONE, true, &[])].concat()
        });
    }
}

#[test]
fn server_sends_data_outside_of_the_request() {
    for style in [Style::Structured, Style::Extended] {
        for (offset, length) in
            [(OFFSET - 1, 1), (OFFSET + 1024, 1), (OFFSET + 1023, 2), (0, 4097), (u64::MAX, 512)]
        {
            bad_read(style, |peer, request| {
                peer.chunk(request, DATA, false, &at(offset, &vec![1; length]))
            });
            bad_read(style, |peer, request| {
                peer.chunk(request, HOLE, false, &hole(offset, length as u32))
            });
        }
    }
}

#[test]
fn server_sends_more_data_than_exists() {
    bad_read(Style::Extended, |peer, request| {
        let mut head = peer.chunk(request, DATA, true, &[]);
        head[24..32].copy_from_slice(&u64::MAX.to_be_bytes());
        [head, at(OFFSET, &[1; 512])].concat()
    });
    bad_read(Style::Structured, |peer, request| {
        let mut head = peer.chunk(request, ERROR, true, &[]);
        head[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        head
    });
}

#[test]
fn server_sends_content_twice() {
    for style in [Style::Structured, Style::Extended] {
        bad_read(style, |peer, request| {
            let first = peer.chunk(request, DATA, false, &at(OFFSET, &[1; 600]));
            [first, peer.chunk(request, DATA, false, &at(OFFSET + 512, &[1; 512]))].concat()
        });
        bad_read(style, |peer, request| {
            let first = peer.chunk(request, DATA, false, &at(OFFSET, &[1; 512]));
            [first, peer.chunk(request, HOLE, false, &hole(OFFSET, 1024))].concat()
        });
    }
}

#[test]
fn server_sends_empty_content() {
    for style in [Style::Structured, Style::Extended] {
        bad_read(style, |peer, request| peer.chunk(request, DATA, false, &at(OFFSET, &[])));
        bad_read(style, |peer, request| peer.chunk(request, HOLE, false, &hole(OFFSET, 0)));
    }
}

#[test]
fn server_sends_chunks_of_the_wrong_length() {
    for style in [Style::Structured, Style::Extended] {
        bad_read(style, |peer, request| peer.chunk(request, NONE, true, &[0]));
        bad_read(style, |peer, request| peer.chunk(request, DATA, true, &[0; 7]));
        bad_read(style, |peer, request| peer.chunk(request, HOLE, true, &[0; 11]));
        bad_read(style, |peer, request| peer.chunk(request, HOLE, true, &[0; 13]));
        bad_read(style, |peer, request| peer.chunk(request, ERROR, true, &[]));
        bad_read(style, |peer, request| peer.chunk(request, ERROR, true, &[0, 0, 0, 5, 0]));
    }
}

#[test]
fn server_sends_an_error_that_is_none() {
    for style in [Style::Structured, Style::Extended] {
        bad_read(style, |peer, request| peer.chunk(request, ERROR, true, &error_payload(0, "")));
        bad_read(style, |peer, request| {
            let mut payload = error_payload(EIO, "words");
            payload.truncate(8);
            peer.chunk(request, ERROR, true, &payload)
        });
    }
}

#[test]
fn server_sends_an_unknown_chunk() {
    for style in [Style::Structured, Style::Extended] {
        bad_read(style, |peer, request| peer.chunk(request, 77, true, &[0; 16]));
    }
}

#[test]
fn server_sends_a_chunk_for_another_command() {
    for style in [Style::Structured, Style::Extended] {
        bad_write(style, |peer, request| peer.chunk(request, DATA, true, &at(0, &[1; 512])));
        bad_write(style, |peer, request| peer.chunk(request, HOLE, true, &hole(0, 512)));
        let kind = if style == Style::Extended { EXTENTS_EXT } else { EXTENTS };
        bad_read(style, |peer, request| {
            peer.chunk(request, kind, true, &extents(style, CONTEXT, &[(1024, 0)]))
        });
    }
}

#[test]
fn server_ends_a_reply_that_is_not_done() {
    for style in [Style::Structured, Style::Extended] {
        bad_write(style, |peer, request| peer.chunk(request, NONE, false, &[]));
    }
}

#[test]
fn server_uses_another_style() {
    bad_read(Style::Simple, |_, request| {
        let peer = Peer { stream: (), style: Style::Structured };
        chunk_of(&peer, request)
    });
    bad_read(Style::Structured, |_, request| {
        let peer = Peer { stream: (), style: Style::Extended };
        chunk_of(&peer, request)
    });
    bad_read(Style::Extended, |_, request| {
        let peer = Peer { stream: (), style: Style::Structured };
        chunk_of(&peer, request)
    });
    bad_read(Style::Extended, |_, request| script::simple(request, EIO));
    bad_read(Style::Structured, |_, request| {
        [script::simple(request, 0), vec![0; LENGTH as usize]].concat()
    });
}

/// A good chunk, in a style that was not agreed on.
fn chunk_of(peer: &Peer<()>, request: &Request) -> Vec<u8> {
    let stream = std::io::Cursor::new(Vec::new());
    let peer = Peer { stream, style: peer.style };
    peer.chunk(request, DATA, true, &at(OFFSET, &[1; LENGTH as usize]))
}

#[test]
fn server_names_the_offset_of_another_request() {
    bad_write(Style::Extended, |peer, request| {
        peer.chunk(&Request { offset: 512, ..request.clone() }, NONE, true, &[])
    });
}

#[test]
fn server_describes_another_context() {
    for style in [Style::Structured, Style::Extended] {
        let kind = if style == Style::Extended { EXTENTS_EXT } else { EXTENTS };
        bad_status(style, |peer, request| {
            peer.chunk(request, kind, true, &extents(style, CONTEXT + 1, &[(4096, 0)]))
        });
        bad_status(style, |peer, request| {
            let chunk = peer.chunk(request, kind, false, &extents(style, CONTEXT, &[(4096, 0)]));
            [chunk.clone(), chunk].concat()
        });
    }
}

#[test]
fn server_describes_nothing() {
    for style in [Style::Structured, Style::Extended] {
        let kind = if style == Style::Extended { EXTENTS_EXT } else { EXTENTS };
        bad_status(style, |peer, request| peer.chunk(request, NONE, true, &[]));
        bad_status(style, |peer, request| {
            peer.chunk(request, kind, true, &extents(style, CONTEXT, &[]))
        });
        bad_status(style, |peer, request| {
            peer.chunk(request, kind, true, &extents(style, CONTEXT, &[(0, 0)]))
        });
    }
}

#[test]
fn server_describes_in_the_other_width() {
    bad_status(Style::Structured, |peer, request| {
        let payload = extents(Style::Extended, CONTEXT, &[(4096, 0)]);
        peer.chunk(request, EXTENTS_EXT, true, &payload)
    });
    bad_status(Style::Extended, |peer, request| {
        let payload = extents(Style::Structured, CONTEXT, &[(4096, 0)]);
        peer.chunk(request, EXTENTS, true, &payload)
    });
}
