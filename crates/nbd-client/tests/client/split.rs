//! Requests that are too long for one message.

use nbd_backend::{Command, Extent};
use nbd_proto::NbdError;

use crate::script::{
    CACHE, CONTEXT, EIO, EXTENTS, Offer, READ, STATUS, STYLES, Style, TRIM, WRITE, ZERO, extents,
    pair,
};
use crate::tasks::{Outcome, pattern, read, start, write};

const MAXIMUM: usize = 65536;

#[test]
fn a_long_read_is_put_together_from_replies_in_any_order() {
    for style in STYLES {
        // The maximum that is kept to is a multiple of the block size.
        let offer = Offer::new(style).blocks(512, MAXIMUM as u32 + 511);
        let (_server, remote, mut peer) = pair(offer);
        let data = pattern(1, 10 * MAXIMUM + 512);
        let pending = read(&remote, 4096, data.len() as u32);
        let mut requests: Vec<_> = (0..11).map(|_| peer.request(READ)).collect();
        requests.reverse();
        assert_eq!(requests[0].length, 512);
        for request in requests {
            let at = request.offset as usize - 4096;
            peer.data(&request, &data[at..at + request.length as usize]);
        }
        assert_eq!(pending.wait(), Outcome::Data(data));
    }
}

#[test]
fn a_long_write_arrives_in_pieces_of_which_a_few_are_under_way() {
    for style in STYLES {
        let offer = Offer::new(style).blocks(512, MAXIMUM as u32);
        let (_server, remote, mut peer) = pair(offer);
        let data = pattern(2, 100 * MAXIMUM);
        let command = Command::Write { offset: 0, length: data.len() as u32, fua: true };
        let pending =
            crate::tasks::start_with(&remote, command, data.clone(), &std::sync::Arc::default());
        let mut written = vec![0; data.len()];
        let mut open = Vec::new();
        for count in 1..=100 {
            let request = peer.request(WRITE);
            assert_eq!(request.flags & 1, 1, "FUA");
            let at = request.offset as usize;
            written[at..at + request.payload.len()].copy_from_slice(&request.payload);
            open.push(request);
            if open.len() == 16 || count == 100 {
                assert!(pending.is_waiting());
                for request in open.drain(..) {
                    peer.answer(&request, 0);
                }
            }
        }
        assert_eq!(pending.wait(), Outcome::Done);
        assert!(written == data);
    }
}

#[test]
fn a_failed_part_fails_the_whole_task() {
    for style in STYLES {
        let offer = Offer::new(style).blocks(512, 512);
        let (_server, remote, mut peer) = pair(offer);
        let pending = write(&remote, 0, &[1; 100 * 512]);
        let requests: Vec<_> = (0..16).map(|_| peer.request(WRITE)).collect();
        for (index, request) in requests.iter().enumerate() {
            peer.answer(request, if index == 0 { EIO } else { 0 });
        }
        assert_eq!(pending.wait(), Outcome::Error(NbdError::EIO));
        // The other 84 are never sent.
        let pending = read(&remote, 0, 512);
        let request = peer.request(READ);
        peer.data(&request, &[1; 512]);
        assert_eq!(pending.wait(), Outcome::Data(vec![1; 512]));
    }
}

#[test]
fn ranges_that_do_not_fit_into_32_bits() {
    let length = 10 << 30;
    let (offset, fua) = (4096, false);
    for style in STYLES {
        let (_server, remote, mut peer) = pair(Offer::new(style).size(1 << 40));
        let (no_hole, fast_only) = (false, false);
        let commands = [
            (TRIM, Command::Trim { offset, length, fua }),
            (CACHE, Command::Cache { offset, length }),
            (ZERO, Command::WriteZeroes { offset, length, fua, no_hole, fast_only }),
        ];
        for (kind, command) in commands {
            let pending = start(&remote, command);
            let mut end = offset;
            let mut requests = Vec::new();
            while end < offset + length {
                let request = peer.request(kind);
                assert_eq!(request.offset, end);
                assert_eq!(request.length % 65536, 0);
                end += request.length;
                requests.push(request);
            }
            assert_eq!(requests.len() == 1, style == Style::Extended);
            assert!(pending.is_waiting());
            for request in requests {
                peer.answer(&request, 0);
            }
            assert_eq!(pending.wait(), Outcome::Done);
        }
    }
}

#[test]
fn a_description_may_be_shorter_than_what_was_asked_for() {
    let (_server, remote, mut peer) = pair(Offer::new(Style::Structured).size(1 << 40));
    let command = Command::BlockStatus { offset: 0, length: 1 << 39, one: false };
    let pending = start(&remote, command);
    let request = peer.request(STATUS);
    assert!(request.length > 1 << 31);
    let payload = extents(Style::Structured, CONTEXT, &[(1 << 30, 3)]);
    let reply = peer.chunk(&request, EXTENTS, true, &payload);
    peer.send(&reply);
    let extent = Extent { length: 1 << 30, hole: true, zero: true };
    assert_eq!(pending.wait(), Outcome::Extents(vec![extent]));
}

#[test]
fn a_connection_that_breaks_between_the_pieces() {
    for style in STYLES {
        let (server, remote, mut peer) = pair(Offer::new(style).blocks(512, 512));
        let data = pattern(5, 4 * 512);
        let reading = read(&remote, 0, 4 * 512);
        for _ in 0..2 {
            let request = peer.request(READ);
            peer.data(&request, &[0; 512]);
        }
        drop(peer);
        // The server can take longer ones now, and knows another style.
        let mut peer = server.accept(Offer::new(Style::Simple).blocks(512, 1024));
        for _ in 0..2 {
            let request = peer.request(READ);
            assert_eq!(request.length, 1024);
            let at = request.offset as usize;
            peer.data(&request, &data[at..at + 1024]);
        }
        assert_eq!(reading.wait(), Outcome::Data(data));
    }
}
