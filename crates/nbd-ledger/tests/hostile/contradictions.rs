//! Hand-made contradictions, each in one word of an otherwise valid ledger.

use std::mem::offset_of;

use nbd_ledger::layout::{LaneControl, ReceiveRecord, Slot, TransmitRecord};
use nbd_ledger::{Damage, LedgerError};
use nbd_proto::{Request, SimpleReply};

use crate::victim::{
    LAYOUT, LONG, PENDING_READ, PENDING_WRITE, SHORT, STAGED_FLUSH, UNSENT_LONG_READ,
    UNSENT_SHORT_READ, VACANT, Victim, WRITTEN, place,
};

fn damage(victim: &Victim) -> Damage {
    match victim.open() {
        Err(LedgerError::Damaged(damage)) => damage,
        other => panic!("no damage: {other:?}"),
    }
}

fn assert_record(victim: &Victim, what: &'static str) {
    assert_eq!(damage(victim), Damage::Record { lane: 0, what });
}

fn assert_slot(victim: &Victim, slot: usize, what: &'static str) {
    assert_eq!(damage(victim), Damage::Slot { lane: 0, slot, what });
}

fn assert_reply(victim: &Victim, at: u64, what: &'static str) {
    assert_eq!(damage(victim), Damage::Reply { lane: 0, at, what });
}

/// Overwrites a word of the valid receive record.
fn receiving(word: usize, value: u64) -> Victim {
    let victim = Victim::new();
    victim.set_long(place::receiving(&victim, word), value);
    victim
}

/// Overwrites a word of the valid transmit record.
fn transmitting(word: usize, value: u64) -> Victim {
    let victim = Victim::new();
    victim.set_long(place::transmitting(&victim, word), value);
    victim
}

/// Overwrites a word of the control page.
fn control(word: usize, value: u64) -> Victim {
    let victim = Victim::new();
    victim.set_long(place::control(word), value);
    victim
}

/// Overwrites a word of a slot.
fn slot(index: usize, word: usize, value: u64) -> Victim {
    let victim = Victim::new();
    victim.set_long(place::slot(index, word), value);
    victim
}

/// Overwrites bytes of the transmit area.
fn reply(at: u64, bytes: &[u8]) -> Victim {
    let victim = Victim::new();
    victim.scribble(place::transmit_area(at), bytes);
    victim
}

const TAKEN: usize = offset_of!(LaneControl, parsed);
const POSITION: usize = offset_of!(Slot, position);
/// Where the second unsent reply begins.
const SECOND: u64 = SimpleReply::LEN as u64 + LONG as u64;

#[test]
fn receiving_more_than_was_asked_for_is_damage() {
    let victim = Victim::new();
    let count = place::receiving(&victim, offset_of!(ReceiveRecord, message.msg_len));
    victim.set_short(count, u32::MAX);
    assert_record(&victim, "receive length");
}

#[test]
fn asking_for_more_than_the_ring_holds_is_damage() {
    let victim = receiving(offset_of!(ReceiveRecord, wanted), LAYOUT.ring + 1);
    assert_record(&victim, "receive length");
}

#[test]
fn stream_position_that_no_stream_reaches_is_damage() {
    let victim = receiving(offset_of!(ReceiveRecord, received), u64::MAX);
    assert_record(&victim, "stream position");
    assert_record(&control(TAKEN, 1 << 62), "stream position");
}

#[test]
fn receive_count_that_nobody_reaches_is_damage() {
    // Odd or even as before, so that the same record stays valid.
    let victim = Victim::new();
    let word = place::control(offset_of!(LaneControl, receive_epoch));
    victim.set_long(word, victim.long(word) | 1 << 63);
    assert_record(&victim, "receive count");
}

#[test]
fn taking_more_than_any_request_is_long_is_damage() {
    assert_record(&control(TAKEN, 1 << 33), "parse position");
}

#[test]
fn ring_that_begins_beyond_what_was_received_is_damage() {
    let victim = receiving(offset_of!(ReceiveRecord, base), 1 << 61);
    assert_record(&victim, "ring base");
}

#[test]
fn ring_that_begins_beyond_what_was_taken_is_damage() {
    let victim = receiving(offset_of!(ReceiveRecord, base), 1);
    victim.set_long(place::control(TAKEN), 0);
    assert_record(&victim, "ring base");
}

#[test]
fn more_untaken_bytes_than_the_ring_holds_is_damage() {
    let victim = receiving(offset_of!(ReceiveRecord, received), LAYOUT.ring + 6000);
    assert_record(&victim, "unparsed length");
}

#[test]
fn transmission_without_a_number_is_damage() {
    let victim = transmitting(offset_of!(TransmitRecord, sequence), 0);
    assert_record(&victim, "transmission number");
}

#[test]
fn transmission_number_that_nobody_reaches_is_damage() {
    let victim = transmitting(offset_of!(TransmitRecord, sequence), u64::MAX);
    assert_record(&victim, "transmission number");
}

#[test]
fn send_count_that_nobody_reaches_is_damage() {
    let victim = Victim::new();
    let word = place::control(offset_of!(LaneControl, transmit_epoch));
    victim.set_long(word, victim.long(word) | 1 << 62);
    assert_record(&victim, "send count");
}

#[test]
fn transmission_longer_than_its_area_is_damage() {
    let victim = transmitting(offset_of!(TransmitRecord, length), LAYOUT.transmit + 1);
    assert_record(&victim, "transmission length");
}

#[test]
fn sending_more_than_there_is_is_damage() {
    let victim = transmitting(offset_of!(TransmitRecord, sent), u64::MAX);
    assert_record(&victim, "sent length");
    let victim = Victim::new();
    let count = place::transmitting(&victim, offset_of!(TransmitRecord, message.msg_len));
    victim.set_short(count, LONG + 1000);
    assert_record(&victim, "sent length");
}

#[test]
fn reply_staged_for_a_later_transmission_than_the_next_is_damage() {
    let victim = slot(STAGED_FLUSH, offset_of!(Slot, state), 100);
    assert_slot(&victim, STAGED_FLUSH, "state");
}

#[test]
fn reply_staged_to_a_request_that_was_not_taken_is_damage() {
    let victim = slot(STAGED_FLUSH, POSITION, 1 << 20);
    assert_slot(&victim, STAGED_FLUSH, "position");
}

#[test]
fn request_that_was_taken_in_part_is_damage() {
    let victim = Victim::new();
    let taken = place::control(TAKEN);
    victim.set_long(taken, victim.long(taken) - 1);
    assert_slot(&victim, STAGED_FLUSH, "position: its end was not taken yet");
}

#[test]
fn two_requests_with_one_cookie_is_damage() {
    let victim = slot(PENDING_READ, offset_of!(Slot, cookie), 3);
    assert_slot(&victim, PENDING_READ, "cookie: two requests have it");
}

#[test]
fn two_requests_at_one_place_is_damage() {
    let victim = Victim::new();
    let first = victim.long(place::slot(PENDING_WRITE, POSITION));
    victim.set_long(place::slot(PENDING_READ, POSITION), first + 100);
    let what = "position: it overlaps another request";
    assert_slot(&victim, PENDING_READ, what);
}

#[test]
fn slot_that_is_suddenly_pending_is_damage() {
    let victim = slot(VACANT, offset_of!(Slot, state), 1);
    // All zeroes: a read at the very beginning of the stream, where another one was.
    victim.set_long(place::slot(UNSENT_LONG_READ, offset_of!(Slot, state)), 1);
    assert_slot(&victim, VACANT, "position: it overlaps another request");
}

#[test]
fn payload_that_was_not_received_is_damage() {
    let victim = Victim::new();
    let length = place::slot(PENDING_WRITE, offset_of!(Slot, length));
    victim.set_short(length, WRITTEN + 1000);
    assert_slot(&victim, PENDING_WRITE, "payload end");
}

#[test]
fn payload_that_the_ring_has_lost_is_damage() {
    let victim = receiving(offset_of!(ReceiveRecord, base), 2 * Request::LEN as u64 + 1);
    assert_slot(&victim, PENDING_WRITE, "payload position");
    let victim = receiving(offset_of!(ReceiveRecord, received), LAYOUT.ring + 5000);
    assert_slot(&victim, PENDING_WRITE, "payload position");
}

#[test]
fn write_that_is_not_the_one_in_the_ring_is_damage() {
    let what = "request: it is not the one in the ring";
    let victim = slot(PENDING_WRITE, offset_of!(Slot, offset), 4096);
    assert_slot(&victim, PENDING_WRITE, what);
    let victim = slot(PENDING_WRITE, offset_of!(Slot, cookie), 99);
    assert_slot(&victim, PENDING_WRITE, what);
    let victim = slot(PENDING_WRITE, POSITION, 3 * Request::LEN as u64);
    assert_slot(&victim, PENDING_WRITE, what);
}

#[test]
fn unsent_reply_without_its_magic_is_damage() {
    assert_reply(&reply(0, &[0]), 0, "has no magic");
    assert_reply(&reply(SECOND, &[0]), SECOND, "has no magic");
}

#[test]
fn unsent_reply_that_answers_no_request_is_damage() {
    assert_reply(&reply(15, &[200]), 0, "answers no request");
    // The cookie of a request that nobody has answered.
    assert_reply(&reply(SECOND + 15, &[4]), SECOND, "answers no request");
}

#[test]
fn unsent_reply_that_answers_two_requests_is_damage() {
    let victim = slot(UNSENT_SHORT_READ, offset_of!(Slot, cookie), 1);
    assert_reply(&victim, 0, "answers two requests");
}

#[test]
fn unsent_reply_that_is_cut_off_is_damage() {
    let length = offset_of!(TransmitRecord, length);
    let victim = transmitting(length, SECOND + 15);
    assert_reply(&victim, SECOND, "is cut off");
    let all = SECOND + SimpleReply::LEN as u64 + u64::from(SHORT);
    assert_reply(&transmitting(length, all - 1), SECOND, "is cut off");
}

#[test]
fn unsent_reply_that_is_missing_is_damage() {
    let victim = transmitting(offset_of!(TransmitRecord, length), SECOND);
    assert_reply(&victim, SECOND, "is missing");
}

#[test]
fn unsent_reply_with_more_data_than_was_asked_for_is_damage() {
    let victim = Victim::new();
    let length = place::slot(UNSENT_LONG_READ, offset_of!(Slot, length));
    victim.set_short(length, LONG - 16);
    assert_reply(&victim, SECOND - 16, "has no magic");
}
