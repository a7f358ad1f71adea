//! The limits of one client.

use std::io::{Read, Write};
use std::time::Duration;

use nbd_proto::CommandType as Type;
use nbd_proto::handshake::ReplyStyle;
use nbd_server::Limits;
use nbd_server::testing::Outcome;

use crate::test_server::{Disk, SLOW, TestServer};

fn server(limits: Limits) -> TestServer {
    TestServer::with(Disk::new(1), limits)
}

#[test]
fn a_client_above_the_connection_limit_is_disconnected() {
    let server = server(Limits { connections: 2, ..Limits::default() });
    let first = server.client(ReplyStyle::Simple);
    let mut second = server.client(ReplyStyle::Simple);
    assert_eq!(server.connect().read(&mut [0]).unwrap(), 0);
    assert_eq!(second.call(Type::FLUSH, 0, 0), Outcome::Done);
    // When the server has noticed that one disconnected, it accepts another one.
    drop(first);
    loop {
        let mut stream = server.connect();
        if stream.read(&mut [0]).unwrap() == 1 {
            break;
        }
    }
}

#[test]
fn a_slow_handshake_is_ended() {
    let handshake = Duration::from_millis(50);
    let server = server(Limits { handshake, ..Limits::default() });
    let mut silent = server.connect();
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 18);
    // Bytes now and then do not extend the time.
    let mut slow = server.connect();
    while slow.write_all(&[0]).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_idle_client_is_disconnected_but_not_one_that_waits_for_a_reply() {
    let idle = Some(Duration::from_millis(50));
    let server = server(Limits { idle, ..Limits::default() });
    let client = server.client(ReplyStyle::Simple);
    client.expect_end();
    let mut waiting = server.client(ReplyStyle::Simple);
    waiting.ask(Type::READ, 1, SLOW, 4096);
    std::thread::sleep(Duration::from_millis(200));
    server.disk.open();
    assert_eq!(waiting.answer(4096).cookie, 1);
}

#[test]
fn requests_beyond_the_limit_wait_for_earlier_ones() {
    for limits in [
        Limits { in_flight: 2, ..Limits::default() },
        Limits { in_flight_bytes: 8192, ..Limits::default() },
    ] {
        let server = server(limits);
        let mut client = server.client(ReplyStyle::Simple);
        client.ask(Type::READ, 1, SLOW, 4096);
        client.ask(Type::READ, 2, SLOW, 4096);
        // Without the limit it would overtake them.
        client.ask(Type::READ, 3, 0, 4096);
        std::thread::sleep(Duration::from_millis(50));
        server.disk.open();
        assert_ne!(client.answer(4096).cookie, 3);
        let mut others = [client.answer(4096).cookie, client.answer(4096).cookie];
        others.sort_unstable();
        assert_eq!(others[1], 3);
    }
}

#[test]
fn a_single_request_is_served_whatever_its_length() {
    let server = server(Limits { in_flight_bytes: 1, ..Limits::default() });
    let mut client = server.client(ReplyStyle::Structured);
    assert_eq!(client.call(Type::READ, 1, 300_000), Outcome::Hole(1, 300_000));
    client.write(2, 1, &[7; 300_000]);
    assert_eq!(client.answer(0).outcome, Outcome::Done);
}
