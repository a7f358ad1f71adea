use std::io::Read;

use super::*;
use crate::receive::TakeOutcome;
use crate::testing::{Backend, SMALL, TestLane, flush, read, write};

/// A backend that has `cookies` to answer, each a read of 64 KiB, and whose socket does not wait.
fn nonblocking_backend(lane: &mut TestLane, cookies: std::ops::Range<u64>) -> Backend {
    let reads = cookies.flat_map(|cookie| read(cookie, 60_000));
    lane.send(&reads.collect::<Vec<_>>());
    let socket = std::os::unix::net::UnixStream::from(lane.socket());
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBuf, &1).unwrap();
    // The flag belongs to the file that all duplicates share.
    socket.set_nonblocking(true).unwrap();
    let mut backend = lane.backend();
    backend.take();
    backend
}

fn stage(backend: &mut Backend) {
    let ticket = backend.tickets.remove(0);
    let data = [ticket.request().cookie as u8; 60_000];
    backend.transmitter.stage(ticket, Answer::Data(&data));
}

/// Sends until the peer has read all replies, and checks each reply.
fn drain(lane: &mut TestLane, transmitter: &mut Transmitter, cookies: &[u64]) {
    let mut bytes = Vec::new();
    lane.peer.set_nonblocking(true).unwrap();
    while bytes.len() < cookies.len() * 60_016 {
        let _ = transmitter.send();
        let mut part = [0; 1000];
        let count = lane.peer.read(&mut part).unwrap();
        bytes.extend_from_slice(&part[..count]);
    }
    for (reply, &cookie) in bytes.chunks(60_016).zip(cookies) {
        let header = SimpleReply::decode(reply.first_chunk().unwrap());
        let error = NbdError::SUCCESS;
        assert_eq!(header, Ok(SimpleReply { error, cookie }));
        assert!(reply[16..].iter().all(|&byte| byte == cookie as u8));
    }
}

#[test]
fn a_send_that_failed_is_continued_by_the_next_one() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = nonblocking_backend(&mut lane, 1..3);
    stage(&mut backend);
    let error = backend.transmitter.send().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    // What is staged meanwhile must neither disturb the unsent bytes nor overtake them.
    stage(&mut backend);
    assert!(backend.transmitter.send().is_err());
    drain(&mut lane, &mut backend.transmitter, &[1, 2]);
    assert_eq!(lane.inspector().totals(0).reads, 2);
}

#[test]
fn a_send_that_failed_is_continued_by_a_successor() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = nonblocking_backend(&mut lane, 1..3);
    stage(&mut backend);
    assert!(backend.transmitter.send().is_err());
    stage(&mut backend);
    drop(backend);
    let (_, mut transmitter, recovery) = lane.recover();
    assert!(recovery.unsent > 0 && recovery.unsent < 60_016);
    let cookies: Vec<_> = recovery.tickets.iter().map(|t| t.request().cookie).collect();
    assert_eq!(cookies, [2], "the second was staged, and not committed");
    drain(&mut lane, &mut transmitter, &[1]);
    assert_eq!(lane.inspector().totals(0).reads, 1, "counted by its predecessor");
}

#[test]
fn staging_before_finish_keeps_the_unsent_bytes() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = nonblocking_backend(&mut lane, 1..3);
    stage(&mut backend);
    assert!(backend.transmitter.send().is_err());
    drop(backend);
    let (receiver, transmitter, recovery) = lane.recover();
    let tickets = recovery.tickets;
    let mut backend = Backend { receiver, transmitter, tickets };
    assert!(backend.transmitter.fits(60_000));
    assert!(!backend.transmitter.fits(72_000), "it would, were the area empty");
    stage(&mut backend);
    drain(&mut lane, &mut backend.transmitter, &[1, 2]);
}

#[test]
fn the_slot_of_a_reply_sent_in_part_is_not_free() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = nonblocking_backend(&mut lane, 1..2);
    let slot = backend.tickets[0].slot;
    stage(&mut backend);
    assert!(backend.transmitter.send().is_err());
    assert!(!backend.receiver.lane.is_free(slot));
    drop(backend);
    let (receiver, mut transmitter, _) = lane.recover();
    assert!(!receiver.lane.is_free(slot), "nor for a successor");
    drain(&mut lane, &mut transmitter, &[1]);
    assert!(transmitter.finish().is_ok());
    assert!(receiver.lane.is_free(slot));
}

#[test]
fn replies_that_were_staged_together_are_sent_together() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&[flush(1), write(2, 100), flush(3)].concat());
    assert_eq!(backend.take(), TakeOutcome::AllTaken);
    let answers = [Answer::Done, Answer::Error(NbdError::EIO), Answer::Done];
    for answer in answers {
        let ticket = backend.tickets.remove(0);
        backend.transmitter.stage(ticket, answer);
    }
    assert_eq!(lane.inspector().in_flight(0).len(), 3, "none is answered yet");
    let sequence = backend.transmitter.sequence;
    backend.transmitter.send().unwrap();
    assert_eq!(backend.transmitter.sequence, sequence + 1);
    let replies = [(); 3].map(|()| lane.reply());
    assert_eq!(replies.map(|reply| reply.cookie), [1, 2, 3]);
    assert_eq!(replies[1].error, NbdError::EIO);
    let totals = lane.inspector().totals(0);
    assert_eq!((totals.flushes, totals.writes, totals.errors), (2, 1, 1));
    assert_eq!(totals.written_bytes, 0, "it failed");
}

#[test]
#[should_panic(expected = "a ticket of another lane")]
fn a_ticket_is_answered_on_its_own_lane() {
    let (mut one, mut other) = (TestLane::new(SMALL), TestLane::new(SMALL));
    let (mut backend, mut stranger) = (one.backend(), other.backend());
    one.send(&flush(1));
    other.send(&flush(1));
    backend.take();
    stranger.take();
    backend.transmitter.stage(stranger.tickets.remove(0), Answer::Done);
}

#[test]
#[should_panic(expected = "a read needs data")]
fn a_read_is_not_answered_without_data() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&read(1, 512));
    backend.take();
    backend.answer(0, Answer::Done);
}

#[test]
#[should_panic(expected = "only a read returns data")]
fn a_write_is_not_answered_with_data() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&write(1, 512));
    backend.take();
    backend.answer(0, Answer::Data(&[0; 512]));
}
