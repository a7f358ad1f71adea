//! How the fuzzer's bytes become a ledger that a backend has overwritten before it died.

use std::mem::{offset_of, size_of};
use std::ops::Range;

use nbd_ledger::layout::{LaneControl, SLOTS, Slot};

// The one that the tests use as well: it died in the middle of everything.
#[path = "../../crates/nbd-ledger/tests/hostile/crashed_ledger.rs"]
#[allow(dead_code, reason = "each target needs a part of it")]
pub(crate) mod crashed_ledger;
use crashed_ledger::{CrashedLedger, LAYOUT, LONG};

/// Slots that the ledger has used.
const USED: usize = 6;
/// The longest overwritten range.
const MAX_OVERWRITE_BYTES: usize = 64;

/// What was overwritten.
#[derive(Default)]
pub(crate) struct Corrupted {
    /// Anything but what a successor can check against the bytes of the stream.
    pub(crate) beyond_repair: bool,
}

/// Reads a list of ranges, each a place, a length and bytes, and overwrites them. An odd
/// first byte wipes the lane before that, so that nothing of it was ever right.
pub(crate) fn corrupt(ledger: &CrashedLedger, bytes: &[u8]) -> Corrupted {
    let mut corrupted = Corrupted::default();
    let Some((mode, mut rest)) = bytes.split_first() else {
        return corrupted;
    };
    if mode % 2 == 1 {
        corrupted.beyond_repair = true;
        let length = LAYOUT.flight_records() as usize;
        ledger.overwrite(LAYOUT.lane(0), &vec![0; length]);
    }
    while let Some((&[region, low, high, length], after)) = rest.split_first_chunk() {
        let place = usize::from(u16::from_le_bytes([low, high]));
        let length = (usize::from(length) % MAX_OVERWRITE_BYTES).min(after.len());
        let (text, after) = after.split_at(length);
        let (start, size) = bounds(region % REGIONS);
        let mut at = place % size;
        if region & 0x80 != 0 {
            // Words are what most of it consists of.
            at -= at % 8;
        }
        let text = &text[..text.len().min(size - at)];
        ledger.overwrite(start + at as u64, text);
        corrupted.beyond_repair |= match region % REGIONS {
            CONTROL => !is_checked(&(at..at + text.len())),
            TRANSMIT | REPLY => false,
            _ => true,
        };
        rest = after;
    }
    corrupted
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
