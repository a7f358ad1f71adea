use super::*;
use crate::Answer;
use crate::testing::{SMALL, TestLane, flush, read, write};

#[test]
fn a_request_is_as_old_as_the_first_mark_behind_it() {
    let mut arrivals = Arrivals::default();
    assert!(arrivals.note(28, 100));
    assert!(!arrivals.note(28, 200), "nothing new");
    assert!(!arrivals.note(20, 200), "a backend was just receiving");
    assert!(arrivals.note(84, 300));
    assert_eq!(arrivals.at(0), Some(100));
    assert_eq!((arrivals.at(28), arrivals.at(56)), (Some(300), Some(300)));
    assert_eq!(arrivals.at(84), None);
}

#[test]
fn there_are_no_more_marks_than_requests_in_flight() {
    let mut arrivals = Arrivals::default();
    for number in 1..10_000 {
        arrivals.note(28 * number, number);
        // One that hangs, one of the middle, and those that no backend has taken.
        arrivals.keep(&[0, 28 * 50], 28 * number.saturating_sub(2));
        assert!(arrivals.marks.len() <= 4, "{arrivals:?}");
    }
    assert_eq!((arrivals.at(0), arrivals.at(28 * 50)), (Some(1), Some(51)));
    arrivals.keep(&[], u64::MAX);
    assert!(arrivals.marks.is_empty());
    assert!(!arrivals.note(28 * 9_999, 20_000), "it has not come anew");
}

#[test]
fn the_next_holder_finds_the_oldest_marks_and_the_latest() {
    let lane = TestLane::new(SMALL);
    let inspector = lane.inspector();
    let mut arrivals = Arrivals::default();
    for number in 1..=MARKS as u64 + 3 {
        arrivals.note(28 * number, 10 * number);
    }
    arrivals.write(&inspector, 0).unwrap();
    let left = Arrivals::left(&lane.inspector(), 0, 1000);
    assert_eq!((left.at(0), left.at(28)), (Some(10), Some(20)));
    let latest = 28 * (MARKS as u64 + 3) - 1;
    assert_eq!(left.at(latest), arrivals.at(latest));
    // Between them younger, never older than it is.
    assert!(left.at(28 * MARKS as u64) >= arrivals.at(28 * MARKS as u64));
    assert!(Arrivals::left(&inspector, 0, 15).at(28).is_none(), "no mark lies in the future");
}

#[test]
fn garbage_in_the_place_of_marks_is_no_mark() {
    let lane = TestLane::new(SMALL);
    let inspector = lane.inspector();
    let mark = |end, at| Mark { end, at };
    let garbage = [mark(56, 20), mark(28, 30), mark(84, 10), mark(1, 1), mark(2, 2)];
    inspector.write_marks(0, &garbage).unwrap();
    assert_eq!(Arrivals::left(&inspector, 0, 100).marks, [mark(56, 20)]);
}

#[test]
fn positions_of_requests_are_those_of_the_stream() {
    let mut lane = TestLane::new(SMALL);
    let mut backend = lane.backend();
    lane.send(&[write(1, 512), flush(2)].concat());
    backend.take();
    backend.answer(0, Answer::Done);
    let inspector = lane.inspector();
    let waiting = [read(3, 100), flush(4)].concat();
    assert_eq!(inspector.received(0), 28 + 512 + 28);
    let slots: Vec<_> = inspector.in_flight(0).iter().map(|seen| seen.position).collect();
    assert_eq!(slots, [28 + 512]);
    let unread: Vec<_> = inspector.unread(0, &waiting).iter().map(|seen| seen.position).collect();
    assert_eq!(unread, [28 + 512 + 28, 28 + 512 + 56]);
}
