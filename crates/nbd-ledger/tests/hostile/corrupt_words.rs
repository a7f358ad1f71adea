//! Hand-made contradictions, each in one word of an otherwise valid ledger.

use std::mem::offset_of;

use nbd_ledger::layout::{LaneControl, ReceiveRecord, Slot, TransmitRecord};
use nbd_ledger::{Corruption, LedgerError};
use nbd_proto::{Request, SimpleReply};

use crate::crashed_ledger::{
    CrashedLedger, LAYOUT, LONG, PENDING_READ, PENDING_WRITE, SHORT, STAGED_FLUSH,
    UNSENT_LONG_READ, UNSENT_SHORT_READ, VACANT, WRITTEN, place,
};

fn corruption(ledger: &CrashedLedger) -> Corruption {
    match ledger.open() {
        Err(LedgerError::Corrupt(found)) => found,
        other => panic!("no corruption: {other:?}"),
    }
}

fn assert_record(ledger: &CrashedLedger, what: &'static str) {
    assert_eq!(corruption(ledger), Corruption::Record { lane: 0, what });
}

fn assert_slot(ledger: &CrashedLedger, slot: usize, what: &'static str) {
    assert_eq!(corruption(ledger), Corruption::Slot { lane: 0, slot, what });
}

fn assert_reply(ledger: &CrashedLedger, at: u64, what: &'static str) {
    assert_eq!(corruption(ledger), Corruption::Reply { lane: 0, at, what });
}

/// Overwrites a word of the valid receive record.
fn receiving(word: usize, value: u64) -> CrashedLedger {
    let ledger = CrashedLedger::new();
    ledger.set_long(place::receiving(&ledger, word), value);
    ledger
}

/// Overwrites a word of the valid transmit record.
fn transmitting(word: usize, value: u64) -> CrashedLedger {
    let ledger = CrashedLedger::new();
    ledger.set_long(place::transmitting(&ledger, word), value);
    ledger
}

/// Overwrites a word of the control page.
fn control(word: usize, value: u64) -> CrashedLedger {
    let ledger = CrashedLedger::new();
    ledger.set_long(place::control(word), value);
    ledger
}

/// Overwrites a word of a slot.
fn slot(index: usize, word: usize, value: u64) -> CrashedLedger {
    let ledger = CrashedLedger::new();
    ledger.set_long(place::slot(index, word), value);
    ledger
}

/// Overwrites bytes of the transmit area.
fn reply(at: u64, bytes: &[u8]) -> CrashedLedger {
    let ledger = CrashedLedger::new();
    ledger.overwrite(place::transmit_area(at), bytes);
    ledger
}

const TAKEN: usize = offset_of!(LaneControl, parsed);
const POSITION: usize = offset_of!(Slot, position);
/// Where the second unsent reply begins.
const SECOND: u64 = SimpleReply::LEN as u64 + LONG as u64;

#[test]
fn receiving_more_than_was_asked_for_is_refused() {
    let ledger = CrashedLedger::new();
    let count = place::receiving(&ledger, offset_of!(ReceiveRecord, message.msg_len));
    ledger.set_short(count, u32::MAX);
    assert_record(&ledger, "receive length");
}

#[test]
fn asking_for_more_than_the_ring_holds_is_refused() {
    let ledger = receiving(offset_of!(ReceiveRecord, wanted), LAYOUT.ring + 1);
    assert_record(&ledger, "receive length");
}

#[test]
fn stream_position_beyond_every_bound_is_refused() {
    let ledger = receiving(offset_of!(ReceiveRecord, received), u64::MAX);
    assert_record(&ledger, "stream position");
    assert_record(&control(TAKEN, 1 << 62), "stream position");
}

#[test]
fn receive_count_beyond_every_bound_is_refused() {
    // Odd or even as before, so that the same record stays valid.
    let ledger = CrashedLedger::new();
    let word = place::control(offset_of!(LaneControl, receive_epoch));
    ledger.set_long(word, ledger.long(word) | 1 << 63);
    assert_record(&ledger, "receive count");
}

#[test]
fn taking_more_than_any_request_is_long_is_refused() {
    assert_record(&control(TAKEN, 1 << 33), "parse position");
}

#[test]
fn ring_that_begins_beyond_what_was_received_is_refused() {
    let ledger = receiving(offset_of!(ReceiveRecord, base), 1 << 61);
    assert_record(&ledger, "ring base");
}

#[test]
fn ring_that_begins_beyond_what_was_taken_is_refused() {
    let ledger = receiving(offset_of!(ReceiveRecord, base), 1);
    ledger.set_long(place::control(TAKEN), 0);
    assert_record(&ledger, "ring base");
}

#[test]
fn more_untaken_bytes_than_the_ring_holds_is_refused() {
    let ledger = receiving(offset_of!(ReceiveRecord, received), LAYOUT.ring + 6000);
    assert_record(&ledger, "unparsed length");
}

#[test]
fn transmission_without_a_number_is_refused() {
    let ledger = transmitting(offset_of!(TransmitRecord, sequence), 0);
    assert_record(&ledger, "transmission number");
}

#[test]
fn transmission_number_beyond_every_bound_is_refused() {
    let ledger = transmitting(offset_of!(TransmitRecord, sequence), u64::MAX);
    assert_record(&ledger, "transmission number");
}

#[test]
fn send_count_beyond_every_bound_is_refused() {
    let ledger = CrashedLedger::new();
    let word = place::control(offset_of!(LaneControl, transmit_epoch));
    ledger.set_long(word, ledger.long(word) | 1 << 62);
    assert_record(&ledger, "send count");
}

#[test]
fn transmission_longer_than_its_area_is_refused() {
    let ledger = transmitting(offset_of!(TransmitRecord, length), LAYOUT.transmit + 1);
    assert_record(&ledger, "transmission length");
}

#[test]
fn sending_more_than_there_is_is_refused() {
    let ledger = transmitting(offset_of!(TransmitRecord, sent), u64::MAX);
    assert_record(&ledger, "sent length");
    let ledger = CrashedLedger::new();
    let count = place::transmitting(&ledger, offset_of!(TransmitRecord, message.msg_len));
    ledger.set_short(count, LONG + 1000);
    assert_record(&ledger, "sent length");
}

#[test]
fn reply_staged_for_a_later_transmission_than_the_next_is_refused() {
    let ledger = slot(STAGED_FLUSH, offset_of!(Slot, state), 100);
    assert_slot(&ledger, STAGED_FLUSH, "state");
}

#[test]
fn reply_staged_to_a_request_that_was_not_taken_is_refused() {
    let ledger = slot(STAGED_FLUSH, POSITION, 1 << 20);
    assert_slot(&ledger, STAGED_FLUSH, "position");
}

#[test]
fn request_that_was_taken_in_part_is_refused() {
    let ledger = CrashedLedger::new();
    let taken = place::control(TAKEN);
    ledger.set_long(taken, ledger.long(taken) - 1);
    assert_slot(&ledger, STAGED_FLUSH, "position: its end was not taken yet");
}

#[test]
fn two_requests_with_one_cookie_is_refused() {
    let ledger = slot(PENDING_READ, offset_of!(Slot, cookie), 3);
    assert_slot(&ledger, PENDING_READ, "cookie: two requests have it");
}

#[test]
fn two_requests_at_one_place_is_refused() {
    let ledger = CrashedLedger::new();
    let first = ledger.long(place::slot(PENDING_WRITE, POSITION));
    ledger.set_long(place::slot(PENDING_READ, POSITION), first + 100);
    let what = "position: it overlaps another request";
    assert_slot(&ledger, PENDING_READ, what);
}

#[test]
fn vacant_slot_made_pending_is_refused() {
    let ledger = slot(VACANT, offset_of!(Slot, state), 1);
    // All zeroes: a read at the very beginning of the stream, where another one was.
    ledger.set_long(place::slot(UNSENT_LONG_READ, offset_of!(Slot, state)), 1);
    assert_slot(&ledger, VACANT, "position: it overlaps another request");
}

#[test]
fn payload_that_was_not_received_is_refused() {
    let ledger = CrashedLedger::new();
    let length = place::slot(PENDING_WRITE, offset_of!(Slot, length));
    ledger.set_short(length, WRITTEN + 1000);
    assert_slot(&ledger, PENDING_WRITE, "payload end");
}

#[test]
fn payload_that_the_ring_has_lost_is_refused() {
    let ledger = receiving(offset_of!(ReceiveRecord, base), 2 * Request::LEN as u64 + 1);
    assert_slot(&ledger, PENDING_WRITE, "payload position");
    let ledger = receiving(offset_of!(ReceiveRecord, received), LAYOUT.ring + 5000);
    assert_slot(&ledger, PENDING_WRITE, "payload position");
}

#[test]
fn write_that_is_not_the_one_in_the_ring_is_refused() {
    let what = "request: it is not the one in the ring";
    let ledger = slot(PENDING_WRITE, offset_of!(Slot, offset), 4096);
    assert_slot(&ledger, PENDING_WRITE, what);
    let ledger = slot(PENDING_WRITE, offset_of!(Slot, cookie), 99);
    assert_slot(&ledger, PENDING_WRITE, what);
    let ledger = slot(PENDING_WRITE, POSITION, 3 * Request::LEN as u64);
    assert_slot(&ledger, PENDING_WRITE, what);
}

#[test]
fn unsent_reply_without_its_magic_is_refused() {
    assert_reply(&reply(0, &[0]), 0, "has no magic");
    assert_reply(&reply(SECOND, &[0]), SECOND, "has no magic");
}

#[test]
fn unsent_reply_that_answers_no_request_is_refused() {
    assert_reply(&reply(15, &[200]), 0, "answers no request");
    // The cookie of a request that is not answered.
    assert_reply(&reply(SECOND + 15, &[4]), SECOND, "answers no request");
}

#[test]
fn unsent_reply_that_answers_two_requests_is_refused() {
    let ledger = slot(UNSENT_SHORT_READ, offset_of!(Slot, cookie), 1);
    assert_reply(&ledger, 0, "answers two requests");
}

#[test]
fn unsent_reply_that_is_cut_off_is_refused() {
    let length = offset_of!(TransmitRecord, length);
    let ledger = transmitting(length, SECOND + 15);
    assert_reply(&ledger, SECOND, "is cut off");
    let all = SECOND + SimpleReply::LEN as u64 + u64::from(SHORT);
    assert_reply(&transmitting(length, all - 1), SECOND, "is cut off");
}

#[test]
fn unsent_reply_that_is_missing_is_refused() {
    let ledger = transmitting(offset_of!(TransmitRecord, length), SECOND);
    assert_reply(&ledger, SECOND, "is missing");
}

#[test]
fn unsent_reply_with_more_data_than_was_asked_for_is_refused() {
    let ledger = CrashedLedger::new();
    let length = place::slot(UNSENT_LONG_READ, offset_of!(Slot, length));
    ledger.set_short(length, LONG - 16);
    assert_reply(&ledger, SECOND - 16, "has no magic");
}
