//! How much of the server a client may take.

use std::io::{Read, Write};
use std::time::Duration;

use nbd_proto::CommandType as Type;
use nbd_proto::handshake::ReplyStyle;
use nbd_server::Limits;
use nbd_server::testing::Outcome;

use crate::world::{Disk, SLOW, World};

fn world(limits: Limits) -> World {
    World::with(Disk::new(1), limits)
}

#[test]
fn one_client_too_many_is_turned_away() {
    let world = world(Limits { connections: 2, ..Limits::default() });
    let first = world.client(ReplyStyle::Simple);
    let mut second = world.client(ReplyStyle::Simple);
    assert_eq!(world.connect().read(&mut [0]).unwrap(), 0);
    assert_eq!(second.call(Type::FLUSH, 0, 0), Outcome::Done);
    // When one has left there is room again, as soon as that is noticed.
    drop(first);
    loop {
        let mut stream = world.connect();
        if stream.read(&mut [0]).unwrap() == 1 {
            break;
        }
    }
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let handshake = Duration::from_millis(50);
    let world = world(Limits { handshake, ..Limits::default() });
    let mut silent = world.connect();
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 18);
    // One that says something now and then is not faster.
    let mut slow = world.connect();
    while slow.write_all(&[0]).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_silent_client_is_dropped_but_not_one_that_waits_for_us() {
    let idle = Some(Duration::from_millis(50));
    let world = world(Limits { idle, ..Limits::default() });
    let client = world.client(ReplyStyle::Simple);
    client.expect_end();
    let mut waiting = world.client(ReplyStyle::Simple);
    waiting.ask(Type::READ, 1, SLOW, 4096);
    std::thread::sleep(Duration::from_millis(200));
    world.disk.open();
    assert_eq!(waiting.answer(4096).cookie, 1);
}

#[test]
fn requests_beyond_the_limit_wait_for_earlier_ones() {
    for limits in [
        Limits { in_flight: 2, ..Limits::default() },
        Limits { in_flight_bytes: 8192, ..Limits::default() },
    ] {
        let world = world(limits);
        let mut client = world.client(ReplyStyle::Simple);
        client.ask(Type::READ, 1, SLOW, 4096);
        client.ask(Type::READ, 2, SLOW, 4096);
        // It would overtake them otherwise.
        client.ask(Type::READ, 3, 0, 4096);
        std::thread::sleep(Duration::from_millis(50));
        world.disk.open();
        assert_ne!(client.answer(4096).cookie, 3);
        let mut others = [client.answer(4096).cookie, client.answer(4096).cookie];
        others.sort_unstable();
        assert_eq!(others[1], 3);
    }
}

#[test]
fn a_single_request_is_served_whatever_its_length() {
    let world = world(Limits { in_flight_bytes: 1, ..Limits::default() });
    let mut client = world.client(ReplyStyle::Structured);
    assert_eq!(client.call(Type::READ, 1, 300_000), Outcome::Hole(1, 300_000));
    client.write(2, 1, &[7; 300_000]);
    assert_eq!(client.answer(0).outcome, Outcome::Done);
}
