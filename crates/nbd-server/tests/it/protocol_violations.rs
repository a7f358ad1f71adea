//! Clients that break the protocol: each loses its own connection, and no other client is affected.

use std::io::Write;
use std::net::Shutdown;

use nbd_proto::handshake::{OptionHead, OptionType, ReplyStyle};
use nbd_proto::{CommandFlags, CommandType as Type, ExtendedRequest};
use nbd_server::testing::{Outcome, RawClient};

use crate::test_server::{SLOW, STYLES, TestServer};

/// A server with a witness: an innocent client.
fn with_witness(test: impl FnOnce(&TestServer)) {
    let server = TestServer::new();
    let mut witness = server.client(ReplyStyle::Structured);
    test(&server);
    assert_eq!(witness.call(Type::READ, 0, 4096), Outcome::Hole(0, 4096));
    assert_eq!(server.client(ReplyStyle::Simple).call(Type::FLUSH, 0, 0), Outcome::Done);
}

#[test]
fn a_wrong_magic_ends_the_connection() {
    with_witness(|server| {
        for style in STYLES {
            let mut client = server.client(style);
            client.ask(Type::FLUSH, 1, 0, 0);
            client.send(&[0x55; 64]);
            assert_eq!(client.answer(0).outcome, Outcome::Done);
            client.expect_end();
        }
    });
}

#[test]
fn the_header_that_was_not_negotiated_ends_the_connection() {
    with_witness(|server| {
        let (flags, command) = (CommandFlags::NONE, Type::FLUSH);
        let request = ExtendedRequest { flags, command, cookie: 1, offset: 0, length: 0 };
        let mut client = server.client(ReplyStyle::Simple);
        client.send(&request.encode());
        client.expect_end();
        let mut client = server.client(ReplyStyle::Extended);
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
fn a_close_at_any_byte_of_a_request_harms_no_other_client() {
    with_witness(|server| {
        for style in STYLES {
            let flags = match style {
                ReplyStyle::Extended => CommandFlags::PAYLOAD_LEN,
                _ => CommandFlags::NONE,
            };
            let client = server.client(style);
            let head = client.request(Type::WRITE, flags, 1, 0, 600);
            let request = [head, vec![1; 600]].concat();
            close_at(client, &[]);
            for end in (1..50).chain([300, request.len() - 1]) {
                close_at(server.client(style), &request[..end]);
            }
        }
        // No part of an incomplete write is executed.
        assert_eq!(server.disk.content()[..600], [0; 600]);
    });
}

#[test]
fn a_close_at_any_byte_of_the_handshake_harms_no_other_client() {
    with_witness(|server| {
        let (option, length) = (OptionType::STRUCTURED_REPLY, 0);
        let head = OptionHead { option, length }.encode();
        let script = [&3_u32.to_be_bytes()[..], &head, &head].concat();
        for end in 0..script.len() {
            let mut stream = server.connect();
            stream.write_all(&script[..end]).unwrap();
            drop(stream);
        }
    });
}

#[test]
fn a_close_with_requests_in_flight_harms_no_other_client() {
    with_witness(|server| {
        for style in STYLES {
            let mut client = server.client(style);
            for cookie in 0..20 {
                client.ask(Type::READ, cookie, crate::test_server::SLOW, 4096);
                client.write(cookie, 1, &[0; 100]);
            }
            drop(client);
        }
        server.disk.open();
    });
}

#[test]
fn an_endless_payload_ends_the_connection() {
    with_witness(|server| {
        // Discarding that payload would take hours.
        let mut client = server.client(ReplyStyle::Extended);
        let flags = CommandFlags::PAYLOAD_LEN;
        let request = client.request(Type::WRITE, flags, 1, 0, 1 << 40);
        client.send(&request);
        client.expect_end();
        // Half of 4 GiB, and then nothing.
        let mut client = server.client(ReplyStyle::Simple);
        let request = client.request(Type::WRITE, CommandFlags::NONE, 1, 0, u32::MAX.into());
        client.send(&request);
        client.send(&[0; 100_000]);
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.rest();
    });
}

#[test]
fn a_payload_above_the_maximum_is_discarded_and_refused() {
    with_witness(|server| {
        let mut client = server.client(ReplyStyle::Structured);
        let length = (64 << 20) + 1;
        let request = client.request(Type::WRITE, CommandFlags::NONE, 1, 0, length);
        client.send(&[request, vec![1; length as usize]].concat());
        assert!(matches!(client.answer(0).outcome, Outcome::Failed(..)));
        assert_eq!(client.call(Type::FLUSH, 0, 0), Outcome::Done);
    });
}

#[test]
fn a_read_of_the_maximum_length_is_refused_while_others_are_in_flight() {
    with_witness(|server| {
        let mut client = server.client(ReplyStyle::Extended);
        client.ask(Type::READ, 1, SLOW, 4096);
        client.ask(Type::READ, 2, 0, u64::MAX);
        let refused = client.answer(4096);
        assert_eq!(refused.cookie, 2);
        assert!(matches!(refused.outcome, Outcome::Failed(..)), "{refused:?}");
        server.disk.open();
        assert_eq!(client.answer(4096).cookie, 1);
    });
}

#[test]
fn a_client_that_reads_no_replies_holds_up_no_other() {
    with_witness(|server| {
        let mut lazy = server.client(ReplyStyle::Simple);
        // Far more than the socket's buffers hold, executed inline and by workers.
        for cookie in 0..64 {
            lazy.ask(Type::READ, cookie, cookie % 2, 512 << 10);
        }
        let mut other = server.client(ReplyStyle::Simple);
        for _ in 0..100 {
            assert_eq!(other.call(Type::READ, 0, 64), Outcome::Data(0, vec![0; 64]));
            assert_eq!(other.call(Type::READ, 1, 64), Outcome::Data(0, vec![0; 64]));
        }
        // When it reads at last, no reply is missing.
        let mut cookies: Vec<_> = (0..64).map(|_| lazy.answer(512 << 10).cookie).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..64).collect::<Vec<_>>());
    });
}
