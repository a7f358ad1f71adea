//! Arbitrary bytes in arbitrary places: whatever is accepted is served without harm.

use std::mem::{offset_of, size_of};

use nbd_ledger::layout::{FLIGHT_RECORDS, LaneControl, SLOTS, Slot};
use nbd_proto::Request;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::crashed_ledger::{CrashedLedger, LAYOUT, answer, place};

/// Numbers that are neither all right nor obviously wrong.
fn boundary_value() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1,
        2,
        3,
        4,
        28,
        LAYOUT.ring - 1,
        LAYOUT.ring,
        LAYOUT.ring + 1,
        1 << 32,
        (1 << 62) - 1,
        1 << 63,
        u64::MAX,
    ];
    prop_oneof![select(edges.to_vec()), 0..10_000_u64, 0..1_u64 << 18, any::<u64>()]
}

/// A word of header, control page or used slots.
fn word() -> impl Strategy<Value = u64> {
    let control = size_of::<LaneControl>() / 8;
    let slots = 8 * size_of::<Slot>() / 8;
    prop_oneof![
        1 => (0..8_u64).prop_map(|word| word * 8),
        8 => (0..control).prop_map(|word| place::control(word * 8)),
        8 => (0..slots).prop_map(|word| place::slot(0, word * 8)),
    ]
}

/// Any run of bytes anywhere.
fn run() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let slots = u64::from(SLOTS) * size_of::<Slot>() as u64;
    let start = prop_oneof![
        0..4096_u64,
        (0..768_u64).prop_map(|byte| LAYOUT.lane(0) + byte),
        (0..slots).prop_map(|byte| LAYOUT.lane(0) + LAYOUT.slots() + byte),
        (0..LAYOUT.ring).prop_map(|byte| LAYOUT.lane(0) + LAYOUT.ring_offset() + byte),
        (0..LAYOUT.transmit).prop_map(place::transmit_area),
    ];
    (start, vec(any::<u8>(), 1..200))
}

/// Looks and serves; the result does not matter, that there is one does.
fn look_and_serve(ledger: &CrashedLedger) {
    if let Ok(inspector) = ledger.inspect() {
        let shown = inspector.in_flight(0);
        assert!(shown.len() <= SLOTS as usize);
        let unread = inspector.unread(0, &[]).len();
        assert!(unread * Request::LEN <= LAYOUT.ring as usize);
        let _ = (inspector.totals(0), inspector.latencies(0), inspector.last_received_at(0));
        assert!(inspector.executions(0, 0, usize::MAX).0.len() <= FLIGHT_RECORDS as usize);
    }
    let _ = ledger.serve();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn boundary_values_in_words_do_no_harm(words in vec((word(), boundary_value()), 1..4)) {
        let ledger = CrashedLedger::new();
        for (offset, value) in words {
            ledger.set_long(offset, value);
        }
        look_and_serve(&ledger);
    }

    #[test]
    fn words_that_are_off_by_a_little_do_no_harm(words in vec((word(), -40..40_i64), 1..4)) {
        let ledger = CrashedLedger::new();
        for (offset, by) in words {
            ledger.set_long(offset, ledger.long(offset).wrapping_add_signed(by));
        }
        look_and_serve(&ledger);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(runs in vec(run(), 1..6)) {
        let ledger = CrashedLedger::new();
        for (offset, bytes) in runs {
            ledger.overwrite(offset, &bytes);
        }
        look_and_serve(&ledger);
    }

    /// Where it stands in the stream and what it was about to send may have been overwritten: a
    /// successor refuses, or sends whole replies to requests that there were.
    #[test]
    fn no_reply_is_sent_to_a_request_that_was_not_made(
        receiving in vec((0..64_usize, boundary_value()), 0..3),
        taken in proptest::option::of(0..7000_u64),
        runs in vec((0..61_000_u64, vec(any::<u8>(), 1..200)), 0..3),
    ) {
        let ledger = CrashedLedger::new();
        for (word, value) in receiving {
            let records = offset_of!(LaneControl, receive);
            let words = offset_of!(LaneControl, transmit) - records;
            ledger.set_long(place::control(records + word * 8 % words), value);
        }
        if let Some(taken) = taken {
            ledger.set_long(place::control(offset_of!(LaneControl, parsed)), taken);
        }
        for (byte, bytes) in runs {
            ledger.overwrite(place::transmit_area(byte), &bytes);
        }
        if let Ok((mut receiver, mut transmitter, recovery)) = ledger.open() {
            let mut tickets = recovery.tickets;
            let _ = receiver.take(1, &mut tickets);
            let mut replies = Vec::new();
            for ticket in tickets {
                answer(&mut transmitter, ticket);
                ledger.drain(&mut transmitter, &mut replies);
            }
            ledger.drain(&mut transmitter, &mut replies);
            prop_assert!(ledger.cookies_of(&replies).is_some());
        }
    }
}
