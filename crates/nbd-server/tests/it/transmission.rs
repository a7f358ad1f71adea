//! Each command in each style of reply; order, size, and cuts.

use std::io::{Read, Write};
use std::net::Shutdown;

use nbd_proto::CommandType as Type;
use nbd_proto::handshake::ReplyStyle;
use nbd_proto::{CommandFlags, NbdError, TransmissionFlags};
use nbd_server::Limits;
use nbd_server::testing::{Answer, Outcome};

use crate::test_server::{Disk, SIZE, SLOW, STYLES, TestServer};

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 512) as u8 ^ at as u8 | 1).collect()
}

#[test]
fn each_command_works_in_each_reply_style() {
    for style in STYLES {
        let server = TestServer::new();
        let mut client = server.client(style);
        let data = pattern(10_000);
        // The test's backend makes the first inline, the second goes to a worker.
        for offset in [8192, 33_333] {
            client.write(5, offset, &data);
            assert_eq!(client.answer(0), Answer { cookie: 5, outcome: Outcome::Done });
            let start = if style == ReplyStyle::Simple { 0 } else { offset };
            let expected = Outcome::Data(start, data.clone());
            assert_eq!(client.call(Type::READ, offset, 10_000), expected);
            assert_eq!(server.disk.content()[offset as usize..][..10_000], data);
        }
        assert_eq!(client.call(Type::FLUSH, 0, 0), Outcome::Done);
        assert_eq!(client.call(Type::CACHE, 0, SIZE), Outcome::Done);
        assert_eq!(client.call(Type::TRIM, 8192, 512), Outcome::Done);
        assert_eq!(server.disk.content()[8192..8704], [0; 512]);
        assert_eq!(client.call(Type::WRITE_ZEROES, 8704, 512), Outcome::Done);
        assert_eq!(server.disk.content()[8192..9216], [0; 1024]);
        assert_eq!(server.disk.content()[9216], data[1024]);
        // A length of 0 is valid.
        assert_eq!(client.call(Type::READ, 0, 0), Outcome::Done);
        assert_eq!(client.call(Type::READ, SIZE, 0), Outcome::Done);
        client.write(6, 5, &[]);
        assert_eq!(client.answer(0), Answer { cookie: 6, outcome: Outcome::Done });
        client.ask(Type::DISC, 0, 0, 0);
        client.expect_end();
    }
}

#[test]
fn a_spinning_disk_sets_the_rotational_flag() {
    let is_told = |server: TestServer| {
        let client = server.client(ReplyStyle::Simple);
        client.established.flags.contains(TransmissionFlags::ROTATIONAL)
    };
    assert!(is_told(TestServer::with(Disk::spinning(), Limits::default())));
    assert!(!is_told(TestServer::new()));
}

#[test]
fn zeroes_are_sent_as_holes_in_chunked_replies() {
    let server = TestServer::new();
    for offset in [0, 1000] {
        let data = |length: usize| Outcome::Data(0, vec![0; length]);
        let mut client = server.client(ReplyStyle::Simple);
        assert_eq!(client.call(Type::READ, offset, 4096), data(4096));
        for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
            let mut client = server.client(style);
            assert_eq!(client.call(Type::READ, offset, 4096), Outcome::Hole(offset, 4096));
            // Short reads are sent as data.
            let few = Outcome::Data(offset, vec![0; 64]);
            assert_eq!(client.call(Type::READ, offset, 64), few);
        }
    }
}

#[test]
fn block_status_returns_data_and_holes() {
    let server = TestServer::new();
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let mut client = server.client(style);
        let status = client.call(Type::BLOCK_STATUS, 0, SIZE);
        assert_eq!(status, Outcome::Extents(vec![(SLOW, 0), (SIZE - SLOW, 3)]));
        let one = client.request(Type::BLOCK_STATUS, CommandFlags::REQ_ONE, 1, 1000, SIZE - 1000);
        client.send(&one);
        assert_eq!(client.answer(0).outcome, Outcome::Extents(vec![(SLOW - 1000, 0)]));
    }
}

#[test]
fn block_status_accepts_a_list_of_contexts() {
    let server = TestServer::new();
    let mut client = server.client(ReplyStyle::Extended);
    let offers = client.established.flags;
    assert!(offers.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    let context = client.established.allocation.unwrap();
    let mut ask = |contexts: &[u32]| {
        let mut filter = SIZE.to_be_bytes().to_vec();
        filter.extend(contexts.iter().flat_map(|context| context.to_be_bytes()));
        let length = filter.len() as u64;
        let flags = CommandFlags::PAYLOAD_LEN;
        let head = client.request(Type::BLOCK_STATUS, flags, 3, 0, length);
        client.send(&[head, filter].concat());
        client.answer(0).outcome
    };
    assert_eq!(ask(&[context]), Outcome::Extents(vec![(SLOW, 0), (SIZE - SLOW, 3)]));
    for contexts in [&[][..], &[context + 1], &[context, context]] {
        match ask(contexts) {
            Outcome::Failed(NbdError::EINVAL, _) => {}
            other => panic!("{contexts:?}: {other:?}"),
        }
    }
}

#[test]
fn offered_command_flags_are_honoured() {
    let server = TestServer::new();
    for style in STYLES {
        let mut client = server.client(style);
        let mut flagged = |command, flags, length| {
            let request = client.request(command, flags, 9, 8192, length);
            client.send(&request);
            client.answer(if command == Type::READ { length as usize } else { 0 }).outcome
        };
        let (fua, no_hole) = (CommandFlags::FUA, CommandFlags::NO_HOLE);
        let fast = CommandFlags::FAST_ZERO;
        assert_eq!(flagged(Type::WRITE_ZEROES, fua | no_hole, 512), Outcome::Done);
        assert_eq!(flagged(Type::WRITE_ZEROES, fast, 512), Outcome::Done);
        match flagged(Type::WRITE_ZEROES, fast | no_hole, 512) {
            Outcome::Failed(NbdError::ENOTSUP, _) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(flagged(Type::TRIM, fua, 512), Outcome::Done);
        // Some clients set FUA on reads.
        assert_ne!(flagged(Type::READ, fua, 512), Outcome::Done);
        if style != ReplyStyle::Simple {
            assert_eq!(flagged(Type::READ, CommandFlags::DF, 512), Outcome::Hole(8192, 512));
        }
    }
}

#[test]
fn fast_requests_overtake_slow_ones() {
    for style in STYLES {
        let server = TestServer::new();
        let mut client = server.client(style);
        client.ask(Type::READ, 1, SLOW, 4096);
        client.ask(Type::READ, 2, 0, 64);
        client.ask(Type::READ, 3, 1, 64);
        let mut cookies = [client.answer(64).cookie, client.answer(64).cookie];
        cookies.sort_unstable();
        assert_eq!(cookies, [2, 3]);
        server.disk.open();
        assert_eq!(client.answer(4096).cookie, 1);
    }
}

#[test]
fn a_thousand_requests_in_one_send_are_answered() {
    for style in STYLES {
        let server = TestServer::new();
        let mut client = server.client(style);
        let ask = |cookie| client.request(Type::READ, CommandFlags::NONE, cookie, cookie * 100, 1);
        let mut batch: Vec<u8> = (0..1000).flat_map(ask).collect();
        batch.extend(client.request(Type::DISC, CommandFlags::NONE, 0, 0, 0));
        client.send(&batch);
        let mut cookies: Vec<_> = (0..1000).map(|_| client.answer(1).cookie).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..1000).collect::<Vec<_>>());
        client.expect_end();
    }
}

#[test]
fn requests_may_arrive_byte_by_byte() {
    let server = TestServer::new();
    for style in STYLES {
        let mut client = server.client(style);
        let data = pattern(600);
        let flags = match style {
            ReplyStyle::Extended => CommandFlags::PAYLOAD_LEN,
            _ => CommandFlags::NONE,
        };
        let script = [
            client.request(Type::WRITE, flags, 1, 100, 600),
            data.clone(),
            client.request(Type::FLUSH, CommandFlags::NONE, 2, 0, 0),
        ]
        .concat();
        for byte in script {
            client.stream.write_all(&[byte]).unwrap();
            std::thread::yield_now();
        }
        let mut cookies = [client.answer(0).cookie, client.answer(0).cookie];
        cookies.sort_unstable();
        assert_eq!(cookies, [1, 2]);
        assert_eq!(server.disk.content()[100..700], data);
    }
}

#[test]
fn a_client_that_shuts_down_its_sending_side_gets_all_replies() {
    let server = TestServer::new();
    let mut client = server.client(ReplyStyle::Simple);
    client.ask(Type::READ, 1, SLOW, 4096);
    client.ask(Type::READ, 2, 1, 64);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer(64).cookie, 2);
    server.disk.open();
    assert_eq!(client.answer(4096).cookie, 1);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn clients_see_each_others_writes() {
    let server = TestServer::new();
    let mut clients: Vec<_> = STYLES.map(|style| server.client(style)).into();
    assert!(clients[0].established.flags.contains(TransmissionFlags::CAN_MULTI_CONN));
    for writer in 0..clients.len() {
        let data = vec![writer as u8 + 1; 128];
        clients[writer].write(1, 4097, &data);
        assert_eq!(clients[writer].answer(0).outcome, Outcome::Done);
        for reader in &mut clients {
            match reader.call(Type::READ, 4097, 128) {
                Outcome::Data(_, read) => assert_eq!(read, data),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn slow_commands_run_inline_after_a_streak_without_other_requests() {
    let server = TestServer::new();
    let mut client = server.client(ReplyStyle::Simple);
    let flush = |client: &mut nbd_server::testing::RawClient| {
        assert_eq!(client.call(Type::FLUSH, 0, 0), Outcome::Done);
    };
    (0..12).for_each(|_| flush(&mut client));
    let by_workers = server.disk.flushed_by_workers();
    assert_eq!(by_workers, [[true; 4], [true; 4], [false; 4]].concat());
    client.ask(Type::READ, 1, SLOW, 512);
    server.disk.wait_for_slow();
    client.ask(Type::READ, 2, 0, 64);
    server.disk.open();
    assert_eq!(client.answer(512).cookie, 1);
    assert_eq!(client.answer(64).cookie, 2);
    flush(&mut client);
    assert_eq!(server.disk.flushed_by_workers(), [true]);
}
