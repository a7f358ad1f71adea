use proptest::prelude::*;

use super::*;
use crate::testing::SMALL;

#[test]
fn regions_follow_each_other_and_fill_the_file() {
    for layout in [SMALL, Layout::with_lanes(3)] {
        assert_eq!(layout.lane(0), PAGE);
        for lane in 0..layout.lanes {
            let end = layout.lane(lane) + layout.transmit_offset() + layout.transmit;
            assert_eq!(end, layout.lane(lane + 1));
        }
        let slots = u64::from(SLOTS) * size_of::<Slot>() as u64;
        assert_eq!(layout.slots() + slots, layout.flight_records());
        let records = u64::from(FLIGHT_RECORDS) * size_of::<FlightRecord>() as u64;
        assert_eq!(layout.flight_records() + records, layout.ring_offset());
        assert_eq!(layout.ring_offset() + layout.ring, layout.transmit_offset());
        assert_eq!(layout.size(), layout.lane(layout.lanes));
    }
}

#[test]
fn a_layout_that_cannot_work_is_not_sound() {
    let broken: [fn(&mut Layout); 10] = [
        |layout| layout.lanes = 0,
        |layout| layout.lanes = MAX_LANES + 1,
        |layout| layout.ring += 1,
        |layout| layout.ring = u64::from(layout.max_payload),
        |layout| layout.ring = u64::MAX - PAGE + 1,
        |layout| layout.transmit += 512,
        |layout| layout.transmit = u64::from(layout.max_payload),
        |layout| layout.transmit = 1 << 40,
        |layout| layout.max_payload = 0,
        |layout| layout.max_payload = u32::MAX,
    ];
    for (number, break_it) in broken.into_iter().enumerate() {
        let mut layout = SMALL;
        break_it(&mut layout);
        assert!(!layout.is_sound(), "layout {number}: {layout:?}");
    }
}

proptest! {
    #[test]
    fn regions_of_a_sound_layout_begin_on_pages(
        lanes in 1..=MAX_LANES,
        ring in 2..=1_u64 << 20,
        transmit in 2..=1_u64 << 20,
        max_payload in 4096..=u32::MAX,
    ) {
        let (ring, transmit) = (ring * PAGE, transmit * PAGE);
        let layout = Layout { lanes, ring, transmit, max_payload };
        prop_assume!(layout.is_sound());
        for offset in [layout.lane(lanes - 1), layout.ring_offset(), layout.transmit_offset()] {
            prop_assert_eq!(offset % PAGE, 0);
        }
        prop_assert!(layout.size() < 1 << 40, "a mapping of this size is possible");
    }

    #[test]
    fn a_slot_state_survives_a_round_trip(word: u64) {
        prop_assert_eq!(SlotState::decode(word).encode(), word);
    }

    #[test]
    fn a_staged_slot_is_free_once_its_transmission_is_complete(n in 2_u64.., complete: u64) {
        prop_assert_eq!(SlotState::decode(n), SlotState::Staged(n));
        prop_assert_eq!(SlotState::Staged(n).is_free(complete), n <= complete);
    }
}

#[test]
fn a_vacant_slot_is_free_and_a_pending_one_never() {
    assert!(SlotState::Vacant.is_free(FIRST_SEQUENCE));
    assert!(!SlotState::Pending.is_free(u64::MAX));
}
