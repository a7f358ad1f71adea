use std::os::unix::fs::FileExt;

use crate::layout::FLIGHT_RECORDS;
use crate::testing::{SMALL, TestLane, flush, read};
use crate::{Answer, Inspector};
use nbd_proto::NbdError;

const ALL: usize = FLIGHT_RECORDS as usize;

/// Answers so many flushes, with cookies from `first` on.
fn flushes(lane: &mut TestLane, first: u64, count: u64) {
    let mut backend = lane.backend();
    for cookie in first..first + count {
        lane.send(&flush(cookie));
        backend.take();
        let ticket = backend.tickets.remove(0);
        backend.transmitter.record_execution(&ticket, NbdError::SUCCESS, 100 + cookie);
        backend.transmitter.stage(ticket, Answer::Done);
        backend.transmitter.send().unwrap();
        lane.reply();
    }
}

fn cookies(inspector: &Inspector, from: u64) -> Vec<u64> {
    let (found, _) = inspector.executions(0, from, ALL);
    found.iter().map(|recorded| recorded.request.cookie).collect()
}

#[test]
fn an_execution_is_recorded_with_its_times_and_result() {
    let mut lane = TestLane::new(SMALL);
    let inspector = lane.inspector();
    let mut backend = lane.backend();
    lane.send(&read(6, 100));
    backend.take();
    assert_eq!(inspector.executions(0, 0, ALL), (vec![], 0));
    backend.tickets[0].begin(77);
    let ticket = backend.tickets.remove(0);
    let request = *ticket.request();
    backend.transmitter.record_execution(&ticket, NbdError::EIO, 99);
    let (found, next) = inspector.executions(0, 0, ALL);
    assert_eq!((found.len(), next), (1, 1));
    let one = found[0];
    assert_eq!((one.request, one.error, one.attempts), (request, NbdError::EIO, 1));
    assert_eq!((one.received_at, one.started_at, one.finished_at), (1, 77, 99));
    assert_eq!(inspector.executions(0, next, ALL), (vec![], 1));
}

#[test]
fn a_successor_continues_the_recorder_and_the_oldest_are_lost() {
    let mut lane = TestLane::new(SMALL);
    let inspector = lane.inspector();
    flushes(&mut lane, 0, 3);
    flushes(&mut lane, 3, 2);
    assert_eq!(cookies(&inspector, 0), [0, 1, 2, 3, 4]);
    assert_eq!(cookies(&inspector, 3), [3, 4]);
    flushes(&mut lane, 5, u64::from(FLIGHT_RECORDS));
    let left = cookies(&inspector, 0);
    // One less than there is room for: the next one may be half there.
    assert_eq!(left.len(), ALL - 1);
    assert_eq!((left[0], left.last()), (6, Some(&(4 + u64::from(FLIGHT_RECORDS)))));
    let (some, next) = inspector.executions(0, 0, 10);
    assert_eq!((some.len(), next), (9, 15), "the oldest ten, of which one may be torn");
}

#[test]
fn readers_and_backends_survive_any_count() {
    let mut lane = TestLane::new(SMALL);
    let inspector = lane.inspector();
    let at = SMALL.lane(0) + std::mem::offset_of!(crate::layout::LaneControl, recorded) as u64;
    for count in [u64::MAX, u64::MAX - 1, 1 << 63, u64::from(FLIGHT_RECORDS), 1] {
        std::fs::File::from(lane.file()).write_all_at(&count.to_ne_bytes(), at).unwrap();
        for from in [0, 1, count, u64::MAX] {
            let (found, next) = inspector.executions(0, from, ALL);
            assert!(found.len() <= ALL && next >= from, "{count} {from}");
        }
        // And a backend goes on from there.
        flushes(&mut lane, 7, 1);
    }
}
