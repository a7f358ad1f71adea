use super::*;
use crate::testing::{Bench, SMALL};

#[test]
fn a_lane_is_given_once() {
    let bench = Bench::new(SMALL);
    let ledger = bench.ledger();
    assert!(ledger.open_lane(0, bench.socket()).is_ok());
    let again = ledger.open_lane(0, bench.socket());
    assert!(matches!(again, Err(LedgerError::LaneTaken(0))));
}

#[test]
fn a_lane_that_could_not_be_opened_may_be_tried_again() {
    let bench = Bench::new(SMALL);
    let ledger = bench.ledger();
    let wanted = |ledger: &Arc<Ledger>, bytes| {
        let record = ledger.map.lane(0).receiving();
        record.wanted.store(bytes, Ordering::Relaxed);
    };
    wanted(&ledger, u64::MAX);
    for _ in 0..2 {
        let opened = ledger.open_lane(0, bench.socket());
        assert!(matches!(opened, Err(LedgerError::Damaged(_))));
    }
    wanted(&ledger, 0);
    assert!(ledger.open_lane(0, bench.socket()).is_ok());
}

#[test]
fn the_first_flush_error_stays() {
    let bench = Bench::new(SMALL);
    assert_eq!(bench.ledger().flush_error(), None);
    bench.ledger().set_flush_error(28);
    bench.ledger().set_flush_error(5);
    assert_eq!(bench.ledger().flush_error(), Some(28));
}

#[test]
fn a_flush_error_without_a_number_is_an_error_all_the_same() {
    let bench = Bench::new(SMALL);
    bench.ledger().set_flush_error(0);
    assert!(bench.ledger().flush_error().is_some());
}

#[test]
#[should_panic(expected = "layout")]
fn a_ledger_of_no_sound_layout_is_not_made() {
    let _ = Ledger::create(&Layout { ring: 0, ..SMALL });
}

#[test]
fn an_unsound_layout_describes_no_file() {
    let bench = Bench::new(SMALL);
    let ring = u64::MAX - 4095;
    let opened = Ledger::open(bench.file(), &Layout { ring, ..SMALL });
    let damage = Damage::File { expected: 0 };
    assert!(matches!(opened, Err(LedgerError::Damaged(found)) if found == damage));
}
