//! What a dead backend left behind: proof that the kills hit what they are meant to hit.

use std::collections::BTreeSet;
use std::fs::File;
use std::mem::{offset_of, size_of};
use std::os::unix::fs::FileExt;

use nbd_ledger::layout::{LaneControl, ReceiveRecord, SLOTS, Slot, SlotState, TransmitRecord};
use nbd_proto::{CommandType, Request};

use crate::script::LAYOUT;

/// A situation that a successor must master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Situation {
    /// Requests were taken and not answered.
    Unanswered,
    /// Bytes were received and not taken.
    Untaken,
    /// A payload was being skipped.
    Skipping,
    /// A slot was filled and not committed.
    Uncommitted,
    /// A reply was staged and not committed.
    Staged,
    /// A transmission was committed and nothing of it sent.
    Unsent,
    /// A transmission was sent in part.
    HalfSent,
    /// The payload of an unanswered write crosses the end of the ring.
    Wrapped,
}

/// Every situation except a transmission sent in part, which takes a peer that reads slowly.
pub(crate) const ORDINARY: [Situation; 7] = [
    Situation::Unanswered,
    Situation::Untaken,
    Situation::Skipping,
    Situation::Uncommitted,
    Situation::Staged,
    Situation::Unsent,
    Situation::Wrapped,
];

/// Looks at the ledger of a dead backend.
pub(crate) fn situations(ledger: &File) -> BTreeSet<Situation> {
    let words = Words(ledger);
    let (received, base) = words.receiving();
    let parsed = words.long(offset_of!(LaneControl, parsed));
    let (sequence, length, sent) = words.transmitting();
    let mut seen = BTreeSet::new();
    let mut note = |situation, holds: bool| holds && seen.insert(situation);
    note(Situation::Untaken, parsed < received);
    note(Situation::Skipping, parsed > received);
    note(Situation::Unsent, sent == 0 && length > 0);
    note(Situation::HalfSent, sent > 0 && sent < length);
    for index in 0..SLOTS as usize {
        let slot = LAYOUT.slots() as usize + index * size_of::<Slot>();
        let position = words.long(slot + offset_of!(Slot, position));
        let state = SlotState::decode(words.long(slot + offset_of!(Slot, state)));
        let staged = state == SlotState::Staged(sequence + 1);
        let taken = state == SlotState::Pending && position < parsed;
        note(Situation::Staged, staged);
        note(Situation::Unanswered, staged || taken);
        note(Situation::Uncommitted, state == SlotState::Pending && !taken);
        let command = words.short(slot + offset_of!(Slot, kind)) as u16;
        let payload = u64::from(words.short(slot + offset_of!(Slot, length)));
        let kept = command == CommandType::WRITE.0 && payload <= LAYOUT.max_payload.into();
        let place = position.wrapping_sub(base) % LAYOUT.ring + Request::LEN as u64;
        let crosses = place < LAYOUT.ring && place + payload > LAYOUT.ring;
        note(Situation::Wrapped, (staged || taken) && kept && crosses);
    }
    seen
}

/// Stream position behind the last byte that a backend received.
pub(crate) fn received_bytes(ledger: &File) -> u64 {
    Words(ledger).receiving().0
}

/// The words of the only lane, by their offset from its control page.
struct Words<'a>(&'a File);

impl Words<'_> {
    /// The stream positions behind the last byte and at the ring's beginning.
    fn receiving(&self) -> (u64, u64) {
        let epoch = self.long(offset_of!(LaneControl, receive_epoch));
        let record =
            offset_of!(LaneControl, receive) + (epoch & 1) as usize * size_of::<ReceiveRecord>();
        let before = self.long(record + offset_of!(ReceiveRecord, received));
        let base = self.long(record + offset_of!(ReceiveRecord, base));
        let count = self.short(record + offset_of!(ReceiveRecord, message.msg_len));
        (before + u64::from(count), base)
    }

    /// The last transmission: its number, its length and what is sent of it.
    fn transmitting(&self) -> (u64, u64, u64) {
        let epoch = self.long(offset_of!(LaneControl, transmit_epoch));
        let record =
            offset_of!(LaneControl, transmit) + (epoch & 1) as usize * size_of::<TransmitRecord>();
        let sequence = self.long(record + offset_of!(TransmitRecord, sequence));
        let length = self.long(record + offset_of!(TransmitRecord, length));
        let before = self.long(record + offset_of!(TransmitRecord, sent));
        let count = self.short(record + offset_of!(TransmitRecord, message.msg_len));
        (sequence, length, before + u64::from(count))
    }

    fn long(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.read(offset))
    }

    fn short(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.read(offset))
    }

    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        let read = self.0.read_exact_at(&mut bytes, LAYOUT.lane(0) + offset as u64);
        read.expect("the ledger is as long as its layout");
        bytes
    }
}
