//! The words of a real ledger, as the model's.

use std::fs::File;
use std::mem::{offset_of, size_of};
use std::os::unix::fs::FileExt;

use nbd_ledger::CrashPoint;
use nbd_ledger::layout::{self, LaneControl, Layout, SLOTS};

use crate::compare::byte_of;
use crate::state::{Config, Ledger, ReceiveRecord, Slot, TransmitRecord};

pub(crate) const LAYOUT: Layout =
    Layout { lanes: 1, ring: 8192, transmit: 8192, max_payload: 4096 };

/// A ledger's words; of its ring and its transmit area, the bytes.
pub(crate) struct Words {
    /// Without ring and area.
    pub(crate) ledger: Ledger,
    ring: Vec<u8>,
    area: Vec<u8>,
}

impl Words {
    pub(crate) fn read(file: &File) -> Self {
        let lane = LAYOUT.lane(0);
        // The records of the flight recorder are none of the model's.
        let read = |from: u64, to: u64| {
            let mut bytes = vec![0; (to - from) as usize];
            file.read_exact_at(&mut bytes, lane + from).expect("a ledger as long as its layout");
            bytes
        };
        let bytes = read(0, LAYOUT.flight_records());
        let words = Bytes(&bytes);
        let epoch = |word: usize| (words.long(word) & 1) as u8;
        let ledger = Ledger {
            receive_epoch: epoch(offset_of!(LaneControl, receive_epoch)),
            receive: [0, 1].map(|record| words.receive_record(record)),
            parsed: words.long(offset_of!(LaneControl, parsed)) as u32,
            transmit_epoch: epoch(offset_of!(LaneControl, transmit_epoch)),
            transmit: [0, 1].map(|record| words.transmit_record(record)),
            slots: (0..SLOTS as usize).map(|index| words.slot(index)).collect(),
            ring: Vec::new(),
            area: Vec::new(),
        };
        let (ring, area) = (LAYOUT.ring_offset(), LAYOUT.transmit_offset());
        Self { ledger, ring: read(ring, area), area: read(area, LAYOUT.size() - lane) }
    }

    /// Panics at the first difference from the model's.
    pub(crate) fn compare(
        &self,
        config: &Config,
        model: &Ledger,
        stream: &[u8],
        point: CrashPoint,
    ) {
        let words =
            Ledger { ring: model.ring.clone(), area: model.area.clone(), ..self.ledger.clone() };
        let records = (model.receive, model.receive_epoch, model.transmit, model.transmit_epoch);
        let found = (words.receive, words.receive_epoch, words.transmit, words.transmit_epoch);
        assert_eq!(found, records, "records at {point:?}");
        assert_eq!(words.parsed, model.parsed, "parsed at {point:?}");
        for (index, (found, slot)) in words.slots.iter().zip(&model.slots).enumerate() {
            assert_eq!(found, slot, "slot {index} at {point:?}");
        }
        let ring = self.ring.iter().zip(&model.ring);
        let is_same = |(found, position): (&u8, &Option<u32>)| {
            position.is_none_or(|position| stream[position as usize] == *found)
        };
        assert!(ring.into_iter().all(is_same), "the ring's bytes at {point:?}");
        let mut area = self.area.iter().zip(&model.area);
        let differs =
            area.position(|(found, byte)| byte.is_some_and(|byte| byte_of(config, byte) != *found));
        assert_eq!(differs, None, "the transmit area's bytes at {point:?}");
    }
}

/// The lane's part of the file.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn receive_record(&self, index: usize) -> ReceiveRecord {
        use layout::ReceiveRecord as Real;
        let record = offset_of!(LaneControl, receive) + index * size_of::<Real>();
        ReceiveRecord {
            received: self.long(record + offset_of!(Real, received)) as u32,
            base: self.long(record + offset_of!(Real, base)) as u32,
            wanted: self.long(record + offset_of!(Real, wanted)) as u32,
            msg_len: self.short(record + offset_of!(Real, message.msg_len)),
        }
    }

    fn transmit_record(&self, index: usize) -> TransmitRecord {
        use layout::TransmitRecord as Real;
        let record = offset_of!(LaneControl, transmit) + index * size_of::<Real>();
        TransmitRecord {
            sequence: self.long(record + offset_of!(Real, sequence)) as u32,
            length: self.long(record + offset_of!(Real, length)) as u32,
            sent: self.long(record + offset_of!(Real, sent)) as u32,
            msg_len: self.short(record + offset_of!(Real, message.msg_len)),
        }
    }

    fn slot(&self, index: usize) -> Slot {
        use layout::Slot as Real;
        let slot = LAYOUT.slots() as usize + index * size_of::<Real>();
        Slot {
            state: self.long(slot + offset_of!(Real, state)) as u32,
            position: self.long(slot + offset_of!(Real, position)) as u32,
            request: self
                .long(slot + offset_of!(Real, cookie))
                .checked_sub(1)
                .map(|name| name as u8),
        }
    }

    fn long(&self, offset: usize) -> u64 {
        let bytes = self.0[offset..].first_chunk().expect("a word within the lane");
        u64::from_ne_bytes(*bytes)
    }

    fn short(&self, offset: usize) -> u32 {
        let bytes = self.0[offset..].first_chunk().expect("a word within the lane");
        u32::from_ne_bytes(*bytes)
    }
}
