//! Every form of a reply, and every order.

use std::sync::Arc;

use nbd_backend::{Backend, Command, Durability, Extent, ProcessDurability};
use nbd_proto::NbdError;

use crate::script::{
    self, CONTEXT, DATA, EIO, ERROR, ERROR_OFFSET, EXTENTS, EXTENTS_EXT, FLUSH, HOLE, NONE, Offer,
    READ, STATUS, STYLES, Style, WRITE, ZERO, at, error_payload, extents, hole, pair,
};
use crate::tasks::{Outcome, pattern, read, start, start_with, write};

const CHUNKED: [Style; 2] = [Style::Structured, Style::Extended];

#[test]
fn a_read_in_one_piece() {
    for style in STYLES {
        // The last is longer than the client's buffer.
        for length in [512, 65536, 1 << 20] {
            let (_server, remote, mut peer) = pair(Offer::new(style));
            let pending = read(&remote, 0, length);
            let data = pattern(length.into(), length as usize);
            let request = peer.request(READ);
            assert_eq!((request.offset, request.length), (0, length.into()));
            peer.data(&request, &data);
            assert_eq!(pending.wait(), Outcome::Data(data), "{style:?}, {length}");
        }
    }
}

#[test]
fn replies_in_another_order() {
    for style in STYLES {
        let (_server, remote, mut peer) = pair(Offer::new(style));
        let pending: Vec<_> = (0..100).map(|index| read(&remote, index * 512, 512)).collect();
        let mut requests: Vec<_> = (0..100).map(|_| peer.request(READ)).collect();
        requests.sort_by_key(|request| request.offset.wrapping_mul(0x9e37_79b9));
        for request in &requests {
            peer.data(request, &pattern(request.offset, 512));
        }
        for (index, pending) in (0..).zip(&pending) {
            assert_eq!(pending.wait(), Outcome::Data(pattern(index * 512, 512)));
        }
    }
}

#[test]
fn chunks_in_any_order_with_holes_and_other_replies_in_between() {
    for style in CHUNKED {
        let (_server, remote, mut peer) = pair(Offer::new(style));
        let long = read(&remote, 4096, 300_000);
        let other = write(&remote, 0, &pattern(1, 512));
        let request = peer.request(READ);
        let written = peer.request(WRITE);
        assert_eq!(written.payload, pattern(1, 512));
        let data = pattern(2, 300_000);
        let end = peer.chunk(&request, DATA, false, &at(4096 + 200_000, &data[200_000..]));
        let middle = peer.chunk(&request, HOLE, false, &hole(4096 + 100_000, 100_000));
        let begin = peer.chunk(&request, DATA, false, &at(4096, &data[..100_000]));
        peer.send(&end);
        peer.answer(&written, 0);
        assert_eq!(other.wait(), Outcome::Done);
        peer.send(&middle);
        peer.send(&begin);
        let last = peer.chunk(&request, NONE, true, &[]);
        peer.send(&last);
        let mut expected = data;
        expected[100_000..200_000].fill(0);
        assert_eq!(long.wait(), Outcome::Data(expected));
    }
}

#[test]
fn a_hole_hides_what_was_read_before() {
    for style in CHUNKED {
        let (_server, remote, mut peer) = pair(Offer::new(style));
        for round in 0..4 {
            let pending = read(&remote, 0, 1 << 20);
            let request = peer.request(READ);
            if round % 2 == 0 {
                peer.data(&request, &pattern(7, 1 << 20));
                assert_eq!(pending.wait(), Outcome::Data(pattern(7, 1 << 20)));
            } else {
                let reply = peer.chunk(&request, HOLE, true, &hole(0, 1 << 20));
                peer.send(&reply);
                assert_eq!(pending.wait(), Outcome::Data(vec![0; 1 << 20]));
            }
        }
    }
}

#[test]
fn one_byte_at_a_time() {
    for style in STYLES {
        let (_server, remote, mut peer) = pair(Offer::new(style));
        let pending = [read(&remote, 0, 512), start(&remote, Command::Flush)];
        let requests = [peer.request(READ), peer.request(FLUSH)];
        let data = pattern(3, 512);
        let mut bytes = match style {
            Style::Simple => [script::simple(&requests[0], 0), data.clone()].concat(),
            _ => peer.chunk(&requests[0], DATA, true, &at(0, &data)),
        };
        bytes.extend(match style {
            Style::Simple => script::simple(&requests[1], 0),
            _ => peer.chunk(&requests[1], NONE, true, &[]),
        });
        for byte in bytes {
            peer.send(&[byte]);
        }
        assert_eq!(pending[0].wait(), Outcome::Data(data));
        assert_eq!(pending[1].wait(), Outcome::Done);
    }
}

#[test]
fn errors_with_and_without_words_and_offsets() {
    for style in STYLES {
        let (_server, remote, mut peer) = pair(Offer::new(style));
        for (sent, told) in [(EIO, NbdError::EIO), (28, NbdError::ENOSPC), (4711, NbdError::EINVAL)]
        {
            let pending = read(&remote, 0, 512);
            let request = peer.request(READ);
            peer.answer(&request, sent);
            assert_eq!(pending.wait(), Outcome::Error(told));
        }
        if style == Style::Simple {
            continue;
        }
        let pending = read(&remote, 0, 1024);
        let request = peer.request(READ);
        let data = peer.chunk(&request, DATA, false, &at(0, &[1; 512]));
        peer.send(&data);
        let mut payload = error_payload(EIO, "bad sector");
        payload.extend(512_u64.to_be_bytes());
        let error = peer.chunk(&request, ERROR_OFFSET, false, &payload);
        peer.send(&error);
        let error = peer.chunk(&request, ERROR, true, &error_payload(28, "and another"));
        peer.send(&error);
        assert_eq!(pending.wait(), Outcome::Error(NbdError::EIO), "the first one counts");
        // One that is yet to be invented.
        let pending = read(&remote, 0, 1024);
        let request = peer.request(READ);
        let error = peer.chunk(&request, 0x8765, true, &error_payload(EIO, "new"));
        peer.send(&error);
        assert_eq!(pending.wait(), Outcome::Error(NbdError::EIO));
    }
}

#[test]
fn a_simple_error_where_chunks_were_agreed_on() {
    let (_server, remote, mut peer) = pair(Offer::new(Style::Structured));
    let pending = read(&remote, 0, 512);
    let request = peer.request(READ);
    peer.send(&script::simple(&request, EIO));
    assert_eq!(pending.wait(), Outcome::Error(NbdError::EIO));
}

#[test]
fn a_failed_flush_is_remembered_and_a_failed_read_is_not() {
    let (_server, remote, mut peer) = pair(Offer::new(Style::Structured));
    let durability = Arc::<ProcessDurability>::default();
    let reading = Command::Read { offset: 0, length: 512 };
    for (command, kind, errno) in [(reading, READ, None), (Command::Flush, FLUSH, Some(5))] {
        let pending = start_with(&remote, command, Vec::new(), &durability);
        let request = peer.request(kind);
        peer.answer(&request, EIO);
        assert_eq!(pending.wait(), Outcome::Error(NbdError::EIO));
        assert_eq!(durability.failed_flush(), errno);
    }
}

#[test]
fn not_supported_is_an_answer_to_fast_zeroing_only() {
    let (_server, remote, mut peer) = pair(Offer::new(Style::Structured));
    for (fast_only, told) in [(true, NbdError::ENOTSUP), (false, NbdError::EINVAL)] {
        let (offset, length, fua, no_hole) = (0, 4096, true, true);
        let command = Command::WriteZeroes { offset, length, fua, no_hole, fast_only };
        let pending = start(&remote, command);
        let request = peer.request(ZERO);
        assert_eq!(request.flags, if fast_only { 0b10011 } else { 0b00011 });
        peer.answer(&request, 95);
        assert_eq!(pending.wait(), Outcome::Error(told));
    }
}

#[test]
fn extents_are_cut_to_what_was_asked_for() {
    for style in CHUNKED {
        let kind = if style == Style::Extended { EXTENTS_EXT } else { EXTENTS };
        let (_server, remote, mut peer) = pair(Offer::new(style));
        for one in [false, true] {
            let command = Command::BlockStatus { offset: 512, length: 4096, one };
            let pending = start(&remote, command);
            let request = peer.request(STATUS);
            assert_eq!(request.flags, if one { 8 } else { 0 });
            let payload = extents(style, CONTEXT, &[(1024, 3), (8192, 0), (512, 1)]);
            let reply = peer.chunk(&request, kind, true, &payload);
            peer.send(&reply);
            let first = Extent { length: 1024, hole: true, zero: true };
            let second = Extent { length: 3072, hole: false, zero: false };
            let expected = if one { vec![first] } else { vec![first, second] };
            assert_eq!(pending.wait(), Outcome::Extents(expected));
        }
    }
}

#[test]
fn commands_the_server_lacks_are_answered_locally() {
    let (_server, remote, mut peer) = pair(Offer::new(Style::Simple).flags(1));
    let can = remote.geometry().capabilities;
    assert!(!can.extents && !can.cache && !can.flush && !can.fua && !can.trim);
    let all_allocated = vec![Extent { length: 4096, hole: false, zero: false }];
    let command = Command::BlockStatus { offset: 0, length: 4096, one: false };
    assert_eq!(start(&remote, command).wait(), Outcome::Extents(all_allocated));
    let cached = start(&remote, Command::Cache { offset: 0, length: 4096 });
    assert_eq!(cached.wait(), Outcome::Done);
    // And nothing was sent.
    let pending = read(&remote, 0, 512);
    let request = peer.request(READ);
    peer.data(&request, &[9; 512]);
    assert_eq!(pending.wait(), Outcome::Data(vec![9; 512]));
}

#[test]
fn empty_ranges_are_answered_locally() {
    let (_server, remote, _peer) = pair(Offer::new(Style::Extended));
    assert_eq!(read(&remote, 512, 0).wait(), Outcome::Data(Vec::new()));
    assert_eq!(write(&remote, 512, &[]).wait(), Outcome::Done);
    let trim = start(&remote, Command::Trim { offset: 0, length: 0, fua: false });
    assert_eq!(trim.wait(), Outcome::Done);
}
