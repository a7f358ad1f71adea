//! The unsafe code of this module on private memory, where Miri can run it (`scripts/test`): bounds,
//! aliasing, and what another thread may see.

use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;
use std::thread;

use super::*;
use crate::flight_recorder::commit;
use crate::inspect::Inspector;
use crate::testing::SMALL;

/// Memory that is not shared, of which Miri knows; it has no memfd and no mapping of a file.
fn private(length: u64) -> Mapping {
    let length = NonZeroUsize::new(length as usize).expect("a length");
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
    let start = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) };
    Mapping { start: start.expect("memory").cast(), length: length.get() }
}

fn map() -> Arc<Map> {
    Arc::new(Map { words: private(SMALL.size()), layout: SMALL })
}

fn ring() -> Ring {
    Ring { twice: private(2 * SMALL.ring), size: SMALL.ring }
}

/// As the kernel does.
fn receive(ring: &Ring, offset: u64, bytes: &[u8]) {
    let window = ring.window(offset, bytes.len() as u64);
    // SAFETY: the window has room for the bytes, and no slice of it exists.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), window.iov_base.cast(), window.iov_len);
    };
}

#[test]
fn the_first_and_last_words_of_each_table_lie_in_the_ledger() {
    let map = map();
    let words = LaneWords::new(&map, 0);
    for number in [0, SLOTS as u16 - 1] {
        words.slot(SlotIndex(number)).offset.store(u64::from(number) + 1, Ordering::Relaxed);
        let seen = map.slot(0, SlotIndex(number)).offset.load(Ordering::Relaxed);
        assert_eq!(seen, u64::from(number) + 1);
    }
    for number in [0, u64::from(FLIGHT_RECORDS) - 1] {
        words.flight_record(number).cookie.store(number + 1, Ordering::Relaxed);
        // The table is a ring.
        let later = map.flight_record(0, number + u64::from(FLIGHT_RECORDS));
        assert_eq!(later.cookie.load(Ordering::Relaxed), number + 1);
    }
    words.control().recorded.store(7, Ordering::Relaxed);
    drop(map);
    assert_eq!(words.control().recorded.load(Ordering::Relaxed), 7, "the words keep their map");
}

#[test]
#[should_panic(expected = "beyond the ledger")]
fn a_lane_beyond_the_ledger_is_refused() {
    map().lane(SMALL.lanes);
}

#[test]
#[should_panic(expected = "beyond the receive ring")]
fn bytes_beyond_the_ring_are_refused() {
    ring().bytes(1, SMALL.ring + 1);
}

#[test]
fn moved_bytes_are_the_same_and_other_slices_stay() {
    let ring = ring();
    receive(&ring, 1000, b"in flight");
    receive(&ring, 2000, b"the remainder");
    let in_flight = ring.bytes(1000, 9);
    ring.copy_to_start(2000, 13);
    assert_eq!((ring.bytes(0, 13), in_flight), (&b"the remainder"[..], &b"in flight"[..]));
    // The next bytes go behind them, while a request is still read.
    receive(&ring, 13, b" and more");
    assert_eq!((ring.bytes(0, 22), in_flight), (&b"the remainder and more"[..], &b"in flight"[..]));
}

#[test]
fn the_transmit_area_is_read_after_it_was_written() {
    let mut area = TransmitArea { bytes: private(SMALL.transmit) };
    let length = area.as_mut_slice().len();
    area.as_mut_slice()[length - 4..].copy_from_slice(b"last");
    assert_eq!(&area.as_slice()[length - 4..], b"last");
}

/// How many records are overwritten while a reader looks.
const ROUNDS: u64 = 24;

/// A writer that laps its reader. All fields of a record are of one execution, whatever the two see
/// of each other's stores: Miri tries orders that this processor never shows.
#[test]
fn a_reader_sees_whole_records_while_the_writer_overwrites_them() {
    let map = map();
    let words = LaneWords::new(&map, 0);
    // The reader has a mapping of its own, of the same memory.
    let same = Mapping { start: map.words.start, length: map.words.length };
    let file = std::fs::File::open("/dev/null").expect("a file");
    let inspector = ManuallyDrop::new(Inspector { map: Map { words: same, layout: SMALL }, file });
    let write = move |number: u64| {
        commit(&words, number, |record| {
            record.cookie.store(number, Ordering::Relaxed);
            record.finished_at.store(number, Ordering::Relaxed);
        });
    };
    // The table is full, and the oldest records are those that are overwritten next.
    let full = u64::from(FLIGHT_RECORDS);
    (0..ROUNDS + 4).chain([full - 1]).for_each(&write);
    thread::scope(|scope| {
        scope.spawn(move || (full..full + ROUNDS).for_each(write));
        for _ in 0..ROUNDS {
            for seen in inspector.executions(0, 0, 4).0 {
                assert_eq!((seen.request.cookie, seen.finished_at), (seen.number, seen.number));
            }
            thread::yield_now();
        }
    });
}
