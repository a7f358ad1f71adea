//! The end of the server.

use std::time::Duration;

use nbd_proto::handshake::ReplyStyle;
use nbd_proto::{CommandType as Type, NbdError};
use nbd_server::Limits;
use nbd_server::testing::Outcome;

use crate::test_server::{Disk, SLOW, SLOW_WRITE, TestServer, has_ended, is_hung_up};

#[test]
fn stop_finishes_requests_in_flight() {
    let mut server = TestServer::new();
    let mut client = server.client(ReplyStyle::Structured);
    let idle = server.client(ReplyStyle::Simple);
    client.ask(Type::READ, 1, SLOW, 4096);
    // A reply to a later request shows that the slow one was received.
    assert_eq!(client.call(Type::FLUSH, 0, 0), Outcome::Done);
    server.stop();
    idle.expect_end();
    // The server stops listening.
    while server.has_socket() {
        std::thread::sleep(Duration::from_millis(1));
    }
    server.disk.open();
    assert_eq!(client.answer(4096).outcome, Outcome::Hole(SLOW, 4096));
    client.expect_end();
    server.join();
}

#[test]
fn requests_after_the_stop_get_eshutdown() {
    let limits = Limits { in_flight: 1, ..Limits::default() };
    let mut server = TestServer::with(Disk::new(1), limits);
    let mut client = server.client(ReplyStyle::Structured);
    client.ask(Type::READ, 1, SLOW, 4096);
    server.disk.wait_for_slow();
    // It stays in the socket: one request is the limit.
    client.ask(Type::READ, 2, 0, 4096);
    let idle = server.client(ReplyStyle::Simple);
    server.stop();
    idle.expect_end();
    server.disk.open();
    assert_eq!(client.answer(4096).outcome, Outcome::Hole(SLOW, 4096));
    match client.answer(4096).outcome {
        Outcome::Failed(NbdError::ESHUTDOWN, words) => {
            assert_eq!(words, "the server is shutting down");
        }
        other => panic!("{other:?}"),
    }
    client.expect_end();
    server.join();
}

/// A client that sees the end of the connection may send the write again, to another server of the
/// same storage. The stuck write, executed later, would then undo newer ones.
#[test]
fn stop_abandons_stuck_requests_and_leaves_their_connections_open() {
    for (command, offset) in [(Type::READ, SLOW), (Type::WRITE, SLOW_WRITE)] {
        let limits = Limits { grace: Duration::from_millis(50), ..Limits::default() };
        let mut server = TestServer::with(Disk::new(1), limits);
        let mut client = server.client(ReplyStyle::Structured);
        match command {
            Type::WRITE => client.write(1, offset, &[7; 4096]),
            _ => client.ask(command, 1, offset, 4096),
        }
        server.disk.wait_for_slow();
        let idle = server.client(ReplyStyle::Simple);
        server.stop();
        idle.expect_end();
        server.join();
        assert!(!is_hung_up(&client) && !has_ended(&mut client), "{command}");
        server.disk.open();
        // It gets no reply, and it is executed before the client sees the end.
        client.expect_end();
        if command == Type::WRITE {
            assert_eq!(server.disk.content()[offset as usize..][..4096], [7; 4096]);
        }
    }
}

#[test]
fn stop_ends_handshakes() {
    let mut server = TestServer::new();
    let mut stream = server.connect();
    std::io::Read::read_exact(&mut stream, &mut [0; 18]).unwrap();
    server.stop();
    assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
    server.join();
}
