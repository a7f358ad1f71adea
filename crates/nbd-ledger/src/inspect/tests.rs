use crate::Answer;
use crate::testing::{SMALL, TestLane, flush, read, write};

#[test]
fn requests_in_flight_are_shown_oldest_first_until_their_reply_is_committed() {
    let mut lane = TestLane::new(SMALL);
    let inspector = lane.inspector();
    let cookies = || -> Vec<_> {
        let found = inspector.in_flight(0).into_iter();
        found.map(|seen| seen.request.cookie).collect()
    };
    let mut backend = lane.backend();
    lane.send(&[flush(7), write(5, 100), read(6, 100)].concat());
    assert!(cookies().is_empty());
    backend.take();
    assert_eq!(cookies(), [7, 5, 6]);
    backend.tickets[0].begin(76);
    backend.tickets[0].begin(77);
    let seen = inspector.in_flight(0)[0];
    assert_eq!((seen.attempts, seen.started_at, seen.received_at), (1, 77, 1));
    let ticket = backend.tickets.remove(1);
    backend.transmitter.stage(ticket, Answer::Done);
    assert_eq!(cookies(), [7, 5, 6]);
    backend.transmitter.send().unwrap();
    assert_eq!(cookies(), [7, 6]);
    assert_eq!(inspector.last_received_at(0), 1);
}

#[test]
fn bytes_that_were_received_and_not_taken_are_shown() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    let half = &write(2, 1000)[..500];
    lane.send(&[&flush(1), half].concat());
    backend.take();
    let inspector = lane.inspector();
    assert_eq!(inspector.unparsed(0, 4096).as_deref(), Ok(half));
    assert_eq!(inspector.unparsed(0, 28).as_deref(), Ok(&half[..28]));
}

#[test]
fn bytes_across_the_end_of_the_ring_are_shown_in_order() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&[write(1, 60_000), write(2, 60_000)].concat());
    backend.take();
    backend.answer(0, Answer::Done);
    let half = &write(3, 40_000)[..30_000];
    lane.send(half);
    backend.take();
    assert_eq!(backend.receiver.base, 0);
    assert!(backend.receiver.received > SMALL.ring);
    let inspector = lane.inspector();
    assert_eq!(inspector.unparsed(0, u64::MAX).as_deref(), Ok(half));
}

#[test]
fn a_skipped_payload_is_reported_with_the_bytes_to_come() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&write(1, 100_000)[..40_000]);
    backend.take();
    assert_eq!(lane.inspector().unparsed(0, 4096), Err(60_028));
}
