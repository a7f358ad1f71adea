//! The end of the server.

use std::time::Duration;

use nbd_proto::handshake::ReplyStyle;
use nbd_proto::{CommandType as Type, NbdError};
use nbd_server::Limits;
use nbd_server::testing::Outcome;

use crate::world::{Disk, SLOW, SLOW_WRITE, World, has_ended, is_hung_up};

#[test]
fn what_is_under_way_is_finished() {
    let mut world = World::new();
    let mut client = world.client(ReplyStyle::Structured);
    let idle = world.client(ReplyStyle::Simple);
    client.ask(Type::READ, 1, SLOW, 4096);
    // An answer to a later one shows that the slow one has been taken.
    assert_eq!(client.call(Type::FLUSH, 0, 0), Outcome::Done);
    world.stop();
    idle.expect_end();
    // Nobody new is let in.
    while world.has_socket() {
        std::thread::sleep(Duration::from_millis(1));
    }
    world.disk.open();
    assert_eq!(client.answer(4096).outcome, Outcome::Hole(SLOW, 4096));
    client.expect_end();
    world.join();
}

#[test]
fn what_comes_too_late_is_refused_as_such() {
    let limits = Limits { in_flight: 1, ..Limits::default() };
    let mut world = World::with(Disk::new(1), limits);
    let mut client = world.client(ReplyStyle::Structured);
    client.ask(Type::READ, 1, SLOW, 4096);
    // It cannot be taken yet.
    client.ask(Type::READ, 2, 0, 4096);
    let idle = world.client(ReplyStyle::Simple);
    world.stop();
    idle.expect_end();
    world.disk.open();
    assert_eq!(client.answer(4096).outcome, Outcome::Hole(SLOW, 4096));
    match client.answer(4096).outcome {
        Outcome::Failed(NbdError::ESHUTDOWN, words) => {
            assert_eq!(words, "the server is shutting down");
        }
        other => panic!("{other:?}"),
    }
    client.expect_end();
    world.join();
}

/// A client that took the connection for closed might send the write again, to another server of
/// the same storage, where it would be followed by others, before this one lands.
#[test]
fn what_is_stuck_does_not_hold_up_the_end_and_keeps_its_connection_open() {
    for (command, offset) in [(Type::READ, SLOW), (Type::WRITE, SLOW_WRITE)] {
        let limits = Limits { grace: Duration::from_millis(50), ..Limits::default() };
        let mut world = World::with(Disk::new(1), limits);
        let mut client = world.client(ReplyStyle::Structured);
        match command {
            Type::WRITE => client.write(1, offset, &[7; 4096]),
            _ => client.ask(command, 1, offset, 4096),
        }
        world.disk.wait_for_slow();
        let idle = world.client(ReplyStyle::Simple);
        world.stop();
        idle.expect_end();
        world.join();
        assert!(!is_hung_up(&client) && !has_ended(&mut client), "{command}");
        world.disk.open();
        // It is not answered any more, and has happened when the end is seen.
        client.expect_end();
        if command == Type::WRITE {
            assert_eq!(world.disk.content()[offset as usize..][..4096], [7; 4096]);
        }
    }
}

#[test]
fn a_client_in_the_middle_of_the_handshake_is_let_go() {
    let mut world = World::new();
    let mut stream = world.connect();
    std::io::Read::read_exact(&mut stream, &mut [0; 18]).unwrap();
    world.stop();
    assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
    world.join();
}
