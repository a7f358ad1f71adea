//! Clients that break the protocol: each loses its own connection, and nobody else's.

use std::io::Write;
use std::net::Shutdown;

use nbd_proto::handshake::{OptionHead, OptionType, ReplyStyle};
use nbd_proto::{CommandFlags, CommandType as Type, ExtendedRequest};
use nbd_server::testing::{Outcome, RawClient};

use crate::world::{SLOW, STYLES, World};

/// A world with a witness: an innocent client.
fn with_witness(test: impl FnOnce(&World)) {
    let world = World::new();
    let mut witness = world.client(ReplyStyle::Structured);
    test(&world);
    assert_eq!(witness.call(Type::READ, 0, 4096), Outcome::Hole(0, 4096));
    assert_eq!(world.client(ReplyStyle::Simple).call(Type::FLUSH, 0, 0), Outcome::Done);
}

#[test]
fn client_sends_something_that_is_no_request() {
    with_witness(|world| {
        for style in STYLES {
            let mut client = world.client(style);
            client.ask(Type::FLUSH, 1, 0, 0);
            client.send(&[0x55; 64]);
            assert_eq!(client.answer(0).outcome, Outcome::Done);
            client.expect_end();
        }
    });
}

#[test]
fn client_uses_the_other_header() {
    with_witness(|world| {
        let (flags, command) = (CommandFlags::NONE, Type::FLUSH);
        let request = ExtendedRequest { flags, command, cookie: 1, offset: 0, length: 0 };
        let mut client = world.client(ReplyStyle::Simple);
        client.send(&request.encode());
        client.expect_end();
        let mut client = world.client(ReplyStyle::Extended);
        client
            .send(&nbd_proto::Request { flags, command, cookie: 1, offset: 0, length: 0 }.encode());
        client.send(&[0; 4]);
        client.expect_end();
    });
}

/// Sends the beginning of a request with data and closes in the middle of it.
fn close_at(mut client: RawClient, bytes: &[u8]) {
    client.send(bytes);
    client.stream.shutdown(Shutdown::Write).unwrap();
    client.expect_end();
}

#[test]
fn client_closes_at_any_byte_of_a_request() {
    with_witness(|world| {
        for style in STYLES {
            let flags = match style {
                ReplyStyle::Extended => CommandFlags::PAYLOAD_LEN,
                _ => CommandFlags::NONE,
            };
            let client = world.client(style);
            let head = client.request(Type::WRITE, flags, 1, 0, 600);
            let request = [head, vec![1; 600]].concat();
            close_at(client, &[]);
            for end in (1..50).chain([300, request.len() - 1]) {
                close_at(world.client(style), &request[..end]);
            }
        }
        // Half a write is none.
        assert_eq!(world.disk.content()[..600], [0; 600]);
    });
}

#[test]
fn client_closes_at_any_byte_of_the_handshake() {
    with_witness(|world| {
        let (option, length) = (OptionType::STRUCTURED_REPLY, 0);
        let head = OptionHead { option, length }.encode();
        let script = [&3_u32.to_be_bytes()[..], &head, &head].concat();
        for end in 0..script.len() {
            let mut stream = world.connect();
            stream.write_all(&script[..end]).unwrap();
            drop(stream);
        }
    });
}

#[test]
fn client_vanishes_with_requests_under_way() {
    with_witness(|world| {
        for style in STYLES {
            let mut client = world.client(style);
            for cookie in 0..20 {
                client.ask(Type::READ, cookie, crate::world::SLOW, 4096);
                client.write(cookie, 1, &[0; 100]);
            }
            drop(client);
        }
        world.disk.open();
    });
}

#[test]
fn client_announces_more_data_than_anybody_has() {
    with_witness(|world| {
        // It would be read for hours, to be refused then.
        let mut client = world.client(ReplyStyle::Extended);
        let flags = CommandFlags::PAYLOAD_LEN;
        let request = client.request(Type::WRITE, flags, 1, 0, 1 << 40);
        client.send(&request);
        client.expect_end();
        // Half of 4 GiB, and then nothing.
        let mut client = world.client(ReplyStyle::Simple);
        let request = client.request(Type::WRITE, CommandFlags::NONE, 1, 0, u32::MAX.into());
        client.send(&request);
        client.send(&[0; 100_000]);
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.rest();
    });
}

#[test]
fn client_announces_too_much_data_and_sends_it() {
    with_witness(|world| {
        let mut client = world.client(ReplyStyle::Structured);
        let length = (64 << 20) + 1;
        let request = client.request(Type::WRITE, CommandFlags::NONE, 1, 0, length);
        client.send(&[request, vec![1; length as usize]].concat());
        assert!(matches!(client.answer(0).outcome, Outcome::Failed(..)));
        assert_eq!(client.call(Type::FLUSH, 0, 0), Outcome::Done);
    });
}

#[test]
fn client_asks_for_all_there_can_be_while_something_is_under_way() {
    with_witness(|world| {
        let mut client = world.client(ReplyStyle::Extended);
        client.ask(Type::READ, 1, SLOW, 4096);
        client.ask(Type::READ, 2, 0, u64::MAX);
        let refused = client.answer(4096);
        assert_eq!(refused.cookie, 2);
        assert!(matches!(refused.outcome, Outcome::Failed(..)), "{refused:?}");
        world.disk.open();
        assert_eq!(client.answer(4096).cookie, 1);
    });
}

#[test]
fn client_does_not_read_its_answers() {
    with_witness(|world| {
        let mut lazy = world.client(ReplyStyle::Simple);
        // Far more than what fits into the socket's buffers, answered here and by workers.
        for cookie in 0..64 {
            lazy.ask(Type::READ, cookie, cookie % 2, 512 << 10);
        }
        let mut other = world.client(ReplyStyle::Simple);
        for _ in 0..100 {
            assert_eq!(other.call(Type::READ, 0, 64), Outcome::Data(0, vec![0; 64]));
            assert_eq!(other.call(Type::READ, 1, 64), Outcome::Data(0, vec![0; 64]));
        }
        // At last it does, and misses nothing.
        let mut cookies: Vec<_> = (0..64).map(|_| lazy.answer(512 << 10).cookie).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..64).collect::<Vec<_>>());
    });
}
