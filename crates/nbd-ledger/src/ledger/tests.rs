use super::*;
use crate::testing::{SMALL, TestLane};

#[test]
fn a_lane_cannot_be_opened_twice() {
    let lane = TestLane::new(SMALL);
    let ledger = lane.ledger();
    assert!(ledger.open_lane(0, lane.socket()).is_ok());
    let again = ledger.open_lane(0, lane.socket());
    assert!(matches!(again, Err(LedgerError::LaneTaken(0))));
}

#[test]
fn a_lane_that_could_not_be_opened_may_be_tried_again() {
    let lane = TestLane::new(SMALL);
    let ledger = lane.ledger();
    let wanted = |ledger: &Arc<Ledger>, bytes| {
        let record = ledger.map.lane(0).receiving();
        record.wanted.store(bytes, Ordering::Relaxed);
    };
    wanted(&ledger, u64::MAX);
    for _ in 0..2 {
        let opened = ledger.open_lane(0, lane.socket());
        assert!(matches!(opened, Err(LedgerError::Corrupt(_))));
    }
    wanted(&ledger, 0);
    assert!(ledger.open_lane(0, lane.socket()).is_ok());
}

#[test]
fn the_first_flush_error_stays() {
    let lane = TestLane::new(SMALL);
    assert_eq!(lane.ledger().flush_error(), None);
    lane.ledger().set_flush_error(28);
    lane.ledger().set_flush_error(5);
    assert_eq!(lane.ledger().flush_error(), Some(28));
}

#[test]
fn a_flush_error_without_a_number_is_an_error_all_the_same() {
    let lane = TestLane::new(SMALL);
    lane.ledger().set_flush_error(0);
    assert!(lane.ledger().flush_error().is_some());
}

#[test]
#[should_panic(expected = "layout")]
fn create_panics_on_an_unsound_layout() {
    let _ = Ledger::create(&Layout { ring: 0, ..SMALL });
}

#[test]
fn open_refuses_an_unsound_layout() {
    let lane = TestLane::new(SMALL);
    let ring = u64::MAX - 4095;
    let opened = Ledger::open(lane.file(), &Layout { ring, ..SMALL });
    let expected = Corruption::File { expected: 0 };
    assert!(matches!(opened, Err(LedgerError::Corrupt(found)) if found == expected));
}
