use std::io::Write;
use std::os::unix::net::UnixStream;

use nbd_net::socket::Socket;
use nbd_net::stream::Stream;

use super::*;

/// A buffer with so much common memory, and its client.
fn recv_buffer(memory: u64) -> (RecvBuffer, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (receiver, _) = Stream::plain(Socket::from_fd(ours.into()).unwrap()).split();
    let recv_buffer = RecvBuffer::new(receiver, &[], &Limits::default(), MemoryBudget::new(memory));
    (recv_buffer.unwrap(), theirs)
}

/// Receives a message of this length and checks its bytes.
fn receive(recv_buffer: &mut RecvBuffer, client: &mut UnixStream, length: usize) {
    let message: Vec<u8> = (0..length).map(|at| at as u8 ^ (at >> 8) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&message).unwrap());
        while recv_buffer.bytes().len() < length {
            recv_buffer.make_room(length).unwrap();
            assert_ne!(recv_buffer.receive(length).unwrap(), 0);
        }
    });
    assert!(recv_buffer.bytes() == message);
}

fn size(recv_buffer: &RecvBuffer) -> usize {
    recv_buffer.block.bytes().len()
}

#[test]
fn small_messages_stay_in_the_small_first_block() {
    let (mut recv_buffer, mut client) = recv_buffer(1);
    for length in [28, 4124, 28, 60_000, 4124] {
        receive(&mut recv_buffer, &mut client, length);
        recv_buffer.consume(length);
        assert_eq!(size(&recv_buffer), INITIAL_BLOCK_SIZE);
    }
    receive(&mut recv_buffer, &mut client, INITIAL_BLOCK_SIZE + 1);
    recv_buffer.consume(INITIAL_BLOCK_SIZE + 1);
    assert_eq!(size(&recv_buffer), BLOCK_SIZE);
}

#[test]
fn a_full_receive_makes_the_next_block_larger() {
    let (mut recv_buffer, mut client) = recv_buffer(1);
    client.write_all(&[7; INITIAL_BLOCK_SIZE + 100]).unwrap();
    recv_buffer.make_room(28).unwrap();
    assert_eq!(recv_buffer.receive(28).unwrap(), INITIAL_BLOCK_SIZE);
    recv_buffer.consume(INITIAL_BLOCK_SIZE - 10);
    recv_buffer.make_room(28).unwrap();
    assert_eq!((recv_buffer.receive(28).unwrap(), size(&recv_buffer)), (100, BLOCK_SIZE));
    assert_eq!(recv_buffer.bytes(), [7; 110]);
}

#[test]
fn a_shared_payload_stays_when_its_message_is_consumed() {
    let (mut recv_buffer, mut client) = recv_buffer(1);
    let _others = recv_buffer.memory.try_take(1).unwrap();
    receive(&mut recv_buffer, &mut client, 5000);
    let (payload, expected) =
        (recv_buffer.share(1000..5000), recv_buffer.bytes()[1000..5000].to_vec());
    recv_buffer.consume(5000);
    receive(&mut recv_buffer, &mut client, 28);
    assert_eq!(size(&recv_buffer), BLOCK_SIZE);
    assert_eq!(payload.as_slice(), expected);
    // Both own blocks are shared now, and the memory is used by others.
    let _payload = recv_buffer.share(0..28);
    assert_eq!(recv_buffer.make_room(100), Err(Blocked::TasksPending));
}

#[test]
fn a_long_message_begins_in_the_own_block_while_memory_is_scarce() {
    let (mut recv_buffer, mut client) = recv_buffer(8 << 20);
    let others = recv_buffer.memory.try_take((2 << 20) + 1).unwrap();
    let length = BLOCK_SIZE + 100_000;
    client.write_all(&[7; 4096]).unwrap();
    recv_buffer.make_room(length).unwrap();
    assert_eq!(recv_buffer.receive(length).unwrap(), 4096);
    assert!(!recv_buffer.holds_memory());
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&vec![7; BLOCK_SIZE - 4096]).unwrap());
        while recv_buffer.bytes().len() < BLOCK_SIZE {
            recv_buffer.make_room(length).unwrap();
            recv_buffer.receive(length).unwrap();
        }
    });
    recv_buffer.make_room(length).unwrap();
    assert!(recv_buffer.holds_memory() && recv_buffer.bytes() == [7; BLOCK_SIZE]);
    drop(others);
}

#[test]
fn release_shared_moves_the_rest_to_a_larger_own_block() {
    let (mut recv_buffer, mut client) = recv_buffer(8 << 20);
    receive(&mut recv_buffer, &mut client, BLOCK_SIZE + 1);
    assert!(recv_buffer.holds_memory());
    // More is left than the first block had room for.
    recv_buffer.consume(BLOCK_SIZE + 1 - 2 * INITIAL_BLOCK_SIZE);
    let rest = recv_buffer.bytes().to_vec();
    recv_buffer.release_shared().unwrap();
    assert!(!recv_buffer.holds_memory());
    assert_eq!((recv_buffer.bytes(), size(&recv_buffer)), (&rest[..], BLOCK_SIZE));
}
