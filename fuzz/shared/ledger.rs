//! How the fuzzer's bytes become a ledger that a backend has scribbled over before it died.

use std::mem::{offset_of, size_of};
use std::ops::Range;

use nbd_ledger::layout::{LaneControl, SLOTS, Slot};

// The one that the tests use as well: it died in the middle of everything.
#[path = "../../crates/nbd-ledger/tests/hostile/victim.rs"]
#[allow(dead_code, reason = "each target needs a part of it")]
pub(crate) mod victim;
use victim::{LAYOUT, LONG, Victim};

/// Slots that the victim has used.
const USED: usize = 6;
/// The longest scribble.
const LONGEST: usize = 64;

/// What was overwritten.
#[derive(Default)]
pub(crate) struct Scribbled {
    /// Anything but what a successor can check against the bytes of the stream.
    pub(crate) beyond_repair: bool,
}

/// Reads a list of scribbles, each of them a place, a length and bytes, and does them. An odd
/// first byte wipes the lane before that, so that nothing of it was ever right.
pub(crate) fn scribble(victim: &Victim, bytes: &[u8]) -> Scribbled {
    let mut scribbled = Scribbled::default();
    let Some((mode, mut rest)) = bytes.split_first() else {
        return scribbled;
    };
    if mode % 2 == 1 {
        scribbled.beyond_repair = true;
        let length = LAYOUT.records() as usize;
        victim.scribble(LAYOUT.lane(0), &vec![0; length]);
    }
    while let Some((&[region, low, high, length], after)) = rest.split_first_chunk() {
        let place = usize::from(u16::from_le_bytes([low, high]));
        let length = (usize::from(length) % LONGEST).min(after.len());
        let (text, after) = after.split_at(length);
        let (start, size) = bounds(region % REGIONS);
        let mut at = place % size;
        if region & 0x80 != 0 {
            // Words are what most of it consists of.
            at -= at % 8;
        }
        let text = &text[..text.len().min(size - at)];
        victim.scribble(start + at as u64, text);
        scribbled.beyond_repair |= match region % REGIONS {
            CONTROL => !is_checked(&(at..at + text.len())),
            TRANSMIT | REPLY => false,
            _ => true,
        };
        rest = after;
    }
    scribbled
}

const CONTROL: u8 = 1;
const TRANSMIT: u8 = 5;
const REPLY: u8 = 6;
const REGIONS: u8 = 7;

/// Where a part of the ledger begins, and how long it is.
fn bounds(region: u8) -> (u64, usize) {
    let slot = size_of::<Slot>();
    let lane = LAYOUT.lane(0);
    match region {
        0 => (0, 64),
        CONTROL => (lane, size_of::<LaneControl>()),
        2 => (lane + LAYOUT.slots(), USED * slot),
        3 => (lane + LAYOUT.slots(), SLOTS as usize * slot),
        4 => (lane + LAYOUT.ring_offset(), LAYOUT.ring as usize),
        TRANSMIT => (lane + LAYOUT.transmit_offset(), LAYOUT.transmit as usize),
        // Around the second reply's header, the first that was not sent: too small a place to be hit
        // by chance.
        _ => (lane + LAYOUT.transmit_offset() + u64::from(LONG), 64),
    }
}

/// Whether these words only tell how much of the stream was received and taken.
fn is_checked(words: &Range<usize>) -> bool {
    let parsed = offset_of!(LaneControl, parsed);
    let records = offset_of!(LaneControl, receive)..offset_of!(LaneControl, transmit);
    let within = |range: Range<usize>| range.start <= words.start && words.end <= range.end;
    within(parsed..parsed + 8) || within(records)
}
