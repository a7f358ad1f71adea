use super::*;
use crate::Answer;
use crate::testing::{Backend, SMALL, TestLane, flush, read, request, write};

/// Where in the ring the next byte will be received, once the receiver has looked for a better
/// place.
fn next_offset(backend: &mut Backend) -> u64 {
    let receiver = &mut backend.receiver;
    receiver.oldest_needed();
    receiver.rebase();
    receiver.offset_of(receiver.received)
}

fn header(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

#[test]
fn a_ring_without_needed_bytes_starts_again_at_its_beginning() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&write(1, 1000));
    backend.take();
    assert_eq!(next_offset(&mut backend), REQUEST_BYTES + 1000, "the write is needed");
    backend.answer(0, Answer::Done);
    assert_eq!(next_offset(&mut backend), 0);
}

#[test]
fn requests_without_payload_do_not_keep_the_ring() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&[read(1, 4096), flush(2)].concat());
    assert_eq!(backend.take(), TakeOutcome::AllTaken);
    assert_eq!(backend.tickets.len(), 2);
    assert_eq!(next_offset(&mut backend), 0);
}

#[test]
fn a_short_remainder_moves_to_the_beginning_and_stays_whole() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    let (done, half) = (read(1, 512), write(2, 4000));
    lane.send(&[&done[..], &half[..10]].concat());
    backend.take();
    assert_eq!(next_offset(&mut backend), 10);
    lane.send(&half[10..]);
    backend.take();
    assert_eq!(backend.tickets[1].request().cookie, 2);
    assert_eq!(backend.tickets[1].payload(), &half[28..]);
}

#[test]
fn a_remainder_longer_than_the_bytes_before_it_is_not_moved() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    let (done, half) = (flush(1), &write(2, 4000)[..100]);
    lane.send(&[&done[..], half].concat());
    backend.take();
    assert_eq!(next_offset(&mut backend), header(&done) + 100);
}

#[test]
fn a_remainder_is_not_moved_while_a_write_before_it_is_unanswered() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&[&write(1, 3000), &write(2, 3000)[..20]].concat());
    backend.take();
    assert_eq!(next_offset(&mut backend), REQUEST_BYTES + 3000 + 20);
    backend.transmitter.stage(backend.tickets.remove(0), Answer::Done);
    let staged = next_offset(&mut backend);
    assert_eq!(staged, REQUEST_BYTES + 3000 + 20, "staged is not answered");
    backend.transmitter.send().unwrap();
    assert_eq!(next_offset(&mut backend), 20);
}

#[test]
fn a_long_remainder_moves_only_after_the_ring_was_filled_far() {
    let layout = crate::Layout::with_lanes(1);
    let mut lane = TestLane::new(layout);
    let mut backend = lane.backend();
    let mut sent = 0;
    let part = 100_000;
    // Writes of which the next has always begun, so that the ring never is empty.
    lane.send(&write(0, 100_000)[..part]);
    for cookie in 0..20 {
        let remainder = &write(cookie, 100_000)[part..];
        lane.send(remainder);
        backend.receive();
        lane.send(&write(cookie + 1, 100_000)[..part]);
        backend.take();
        backend.answer(0, Answer::Done);
        sent += REQUEST_BYTES + 100_000;
        let offset = next_offset(&mut backend);
        if sent < REWIND_AFTER_BYTES {
            assert_eq!(offset, sent + part as u64, "not far yet");
        } else {
            assert_eq!(offset, part as u64, "moved at {sent}");
            return;
        }
    }
    panic!("the remainder never moved");
}

#[test]
fn a_payload_across_the_end_of_the_ring_is_contiguous() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    for cookie in 1..=12 {
        lane.send(&write(cookie, 30_000));
        backend.take();
        let newest = backend.tickets.last().unwrap();
        assert!(newest.payload().iter().all(|&byte| byte == cookie as u8));
        assert_eq!(newest.payload().len(), 30_000);
        // The oldest of two stays unanswered, so the ring never starts again.
        if backend.tickets.len() == 2 {
            backend.answer(0, Answer::Done);
        }
    }
    assert_eq!(backend.receiver.base, 0);
}

#[test]
fn a_full_ring_has_space_again_when_its_oldest_write_is_answered() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.peer.set_nonblocking(true).unwrap();
    lane.send(&[write(1, 50_000), write(2, 50_000), write(3, 50_000)].concat());
    assert_eq!(backend.take(), TakeOutcome::AllTaken);
    assert_eq!(backend.tickets.len(), 2);
    assert!(!backend.receiver.has_space());
    backend.answer(1, Answer::Done);
    assert!(!backend.receiver.has_space(), "the oldest is still there");
    backend.answer(0, Answer::Done);
    assert!(backend.receiver.has_space());
    backend.take();
    assert_eq!(backend.tickets[0].request().cookie, 3);
}

#[test]
fn a_request_without_a_free_slot_waits_until_a_reply_is_sent() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    let flushes = (0..=u64::from(SLOTS)).flat_map(flush);
    lane.send(&flushes.collect::<Vec<_>>());
    assert_eq!(backend.take(), TakeOutcome::NoFreeSlot);
    assert_eq!(backend.tickets.len(), SLOTS as usize);
    assert!(!backend.receiver.has_slot());

    backend.transmitter.stage(backend.tickets.remove(7), Answer::Done);
    assert!(!backend.receiver.has_slot(), "staged is not sent");
    backend.transmitter.send().unwrap();
    assert!(backend.receiver.has_slot());
    assert_eq!(backend.take(), TakeOutcome::AllTaken);
    let last = backend.tickets.last().unwrap();
    assert_eq!(last.request().cookie, u64::from(SLOTS));
    assert_eq!(last.slot.get(), 7);
}

#[test]
fn a_write_too_long_is_skipped_and_the_next_request_found() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&write(1, SMALL.max_payload + 1));
    lane.send(&flush(2));
    backend.take();
    // Long or not, it gets a ticket at once, and its answer need not wait for its bytes.
    assert_eq!(backend.tickets[0].payload(), &[0; 0]);
    backend.take();
    assert_eq!(backend.tickets[1].request().cookie, 2);
}

#[test]
fn requests_before_a_bad_header_are_committed() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&[flush(1), vec![0xff; 28]].concat());
    backend.receive();
    for _ in 0..2 {
        let error = backend.receiver.take(1, &mut backend.tickets).unwrap_err();
        assert_eq!((error.position, error.found), (REQUEST_BYTES, u32::MAX));
    }
    backend.answer(0, Answer::Done);
    drop(backend);
    // Were it not, a successor would execute and answer it once more.
    assert_eq!(lane.backend().tickets.len(), 0);
}

#[test]
fn a_successor_sees_the_disconnect_too() {
    let mut lane = TestLane::new(SMALL);
    let disconnect = request(CommandType::DISC, 0, 0).encode();
    lane.send(&[&flush(1)[..], &disconnect].concat());
    let mut backend = lane.backend();
    assert_eq!(backend.take(), TakeOutcome::Disconnect);
    drop(backend);
    let mut successor = lane.backend();
    assert_eq!(successor.tickets.len(), 1);
    assert_eq!(successor.take(), TakeOutcome::Disconnect);
}

#[test]
fn a_slot_keeps_every_field_of_a_request_and_counts_attempts() {
    let mut lane = TestLane::new(SMALL);
    let request = Request {
        flags: nbd_proto::CommandFlags::from_bits(0xfedc),
        command: CommandType(0xba98),
        cookie: u64::MAX - 1,
        offset: u64::MAX - 2,
        length: u32::MAX - 3,
    };
    lane.send(&request.encode());
    let mut backend = lane.backend();
    backend.take();
    for attempt in 1..=3 {
        assert_eq!(*backend.tickets[0].request(), request);
        backend.tickets[0].requeue(false);
        backend.tickets[0].begin(9);
        backend.tickets[0].begin(10);
        assert_eq!(backend.tickets[0].attempts(), attempt, "begun again by the same backend");
        drop(backend);
        backend = lane.backend();
    }
}
