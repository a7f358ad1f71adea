use super::*;
use crate::Answer;
use crate::testing::{SMALL, TestLane, flush, read, write};

#[test]
fn buckets_join_and_are_a_quarter_of_an_octave_wide() {
    assert_eq!(bounds(0), (0, Some(1280)));
    for number in 1..HISTOGRAM_BUCKETS - 1 {
        let (from, end) = bounds(number);
        let end = end.expect("an end");
        assert_eq!(bounds(number - 1).1, Some(from));
        assert_eq!((bucket(from), bucket(end - 1)), (number, number));
        assert!(end - from <= from / 4, "{number}: {from} to {end}");
    }
    let (from, end) = bounds(HISTOGRAM_BUCKETS - 1);
    assert_eq!((from / 1_000_000_000, end), (51, None));
    assert_eq!([0, 1, 1279, 1280, u64::MAX].map(bucket), [0, 0, 0, 1, HISTOGRAM_BUCKETS - 1]);
}

#[test]
fn requests_count_by_their_kind_once_they_are_answered_and_only_once() {
    let mut lane = TestLane::new(SMALL);
    let inspector = lane.inspector();
    let counts = || -> Vec<u64> {
        let all = inspector.latencies(0);
        all.iter().map(|histogram| histogram.buckets.iter().sum()).collect()
    };
    let mut backend = lane.backend();
    lane.send(&[read(1, 512), write(2, 512), flush(3), flush(4)].concat());
    // The lane takes requests at time 1.
    backend.take();
    for time in [2001, 3001, 4001, 5001] {
        let ticket = backend.tickets.remove(0);
        backend.transmitter.record_execution(&ticket, nbd_proto::NbdError::SUCCESS, time);
        let answer = if time == 2001 { Answer::DataInPlace } else { Answer::Done };
        backend.transmitter.stage(ticket, answer);
    }
    assert_eq!(counts(), [0, 0, 0, 0], "nothing is answered yet");
    backend.transmitter.send().unwrap();
    assert_eq!(counts(), [1, 1, 0, 2]);
    let [read, write, _, flush] = inspector.latencies(0);
    assert_eq!((read.sum, write.sum, flush.sum), (2000, 3000, 9000));
    assert_eq!((read.buckets[bucket(2000)], flush.buckets[bucket(5000)]), (1, 1));

    // A successor goes on in the same histograms; what died unanswered counts when it is answered.
    lane.send(&crate::testing::flush(5));
    backend.take();
    let ticket = backend.tickets.remove(0);
    backend.transmitter.record_execution(&ticket, nbd_proto::NbdError::SUCCESS, 7001);
    backend.transmitter.stage(ticket, Answer::Done);
    drop(backend);
    let mut successor = lane.backend();
    let ticket = successor.tickets.remove(0);
    successor.transmitter.record_execution(&ticket, nbd_proto::NbdError::SUCCESS, 9001);
    successor.transmitter.stage(ticket, Answer::Done);
    successor.transmitter.send().unwrap();
    assert_eq!(counts(), [1, 1, 0, 3]);
    assert_eq!(inspector.latencies(0)[3].sum, 18_000);
}
