//! What a dead backend left: proof that the scenarios meet what they are made for.

use std::mem::{offset_of, size_of};
use std::os::unix::fs::FileExt;

use nbd_ledger::layout::{LaneControl, ReceiveRecord, SLOTS, Slot, SlotState, TransmitRecord};
use nbd_proto::CommandType;

use crate::device_fixture::DeviceFixture;
use crate::script::LAYOUT;

/// A situation that a successor must master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CrashState {
    /// Bytes were received and not taken.
    Untaken,
    /// A payload is being skipped.
    Skipping,
    /// Replies were committed, and only a part of their bytes was sent.
    HalfSent,
    /// A reply was staged and not committed.
    Staged,
    /// A request is not answered, and a younger one is.
    Overtaken,
    /// The payload of an unanswered write lies across the ring's end.
    Wrapped,
}

pub(crate) fn scenes(fixture: &DeviceFixture) -> Vec<CrashState> {
    let words = Words(fixture);
    let receiving = words.valid(offset_of!(LaneControl, receive_epoch), RECEIVE);
    let base = words.long(receiving + offset_of!(ReceiveRecord, base));
    let received = words.long(receiving + offset_of!(ReceiveRecord, received))
        + words.short(receiving + offset_of!(ReceiveRecord, message.msg_len));
    let parsed = words.long(offset_of!(LaneControl, parsed));
    let sending = words.valid(offset_of!(LaneControl, transmit_epoch), TRANSMIT);
    let sequence = words.long(sending + offset_of!(TransmitRecord, sequence));
    let length = words.long(sending + offset_of!(TransmitRecord, length));
    let sent = words.long(sending + offset_of!(TransmitRecord, sent))
        + words.short(sending + offset_of!(TransmitRecord, message.msg_len));
    let slots = (0..SLOTS as usize).map(|index| words.request(index));
    let (waiting, others): (Vec<_>, Vec<_>) = slots.partition(|slot| match slot.state {
        SlotState::Vacant => false,
        SlotState::Pending => slot.position < parsed,
        SlotState::Staged(n) => n > sequence,
    });
    let answered = others.iter().filter(|slot| matches!(slot.state, SlotState::Staged(_)));
    let youngest = answered.map(|slot| slot.position).max().unwrap_or(0);
    let crosses = |slot: &Request| {
        let start = slot.position.wrapping_sub(base) % LAYOUT.ring + HEADER;
        start < LAYOUT.ring && start + slot.payload > LAYOUT.ring
    };
    let staged = SlotState::Staged(sequence + 1);
    [
        (CrashState::Untaken, parsed < received),
        (CrashState::Skipping, parsed > received),
        (CrashState::HalfSent, 0 < sent && sent < length),
        (CrashState::Staged, waiting.iter().any(|slot| slot.state == staged)),
        (CrashState::Overtaken, waiting.iter().any(|slot| slot.position < youngest)),
        (CrashState::Wrapped, waiting.iter().any(crosses)),
    ]
    .into_iter()
    .filter_map(|(scene, holds)| holds.then_some(scene))
    .collect()
}

/// What a slot says.
struct Request {
    state: SlotState,
    /// Where it lies in the stream, and how much data it has there.
    position: u64,
    payload: u64,
}

const HEADER: u64 = nbd_proto::Request::LEN as u64;
const RECEIVE: usize = offset_of!(LaneControl, receive);
const TRANSMIT: usize = offset_of!(LaneControl, transmit);

/// The words of the only lane, by their offset from its control page.
struct Words<'a>(&'a DeviceFixture);

impl Words<'_> {
    /// Offset of the valid one of a pair of records.
    fn valid(&self, epoch: usize, pair: usize) -> usize {
        pair + (self.long(epoch) & 1) as usize * size_of::<ReceiveRecord>()
    }

    fn request(&self, index: usize) -> Request {
        let slot = LAYOUT.slots() as usize + index * size_of::<Slot>();
        let state = SlotState::decode(self.long(slot + offset_of!(Slot, state)));
        let position = self.long(slot + offset_of!(Slot, position));
        let command = self.short(slot + offset_of!(Slot, kind)) as u16;
        let length = self.short(slot + offset_of!(Slot, length));
        let is_kept = command == CommandType::WRITE.0 && length <= LAYOUT.max_payload.into();
        Request { state, position, payload: if is_kept { length } else { 0 } }
    }

    fn long(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.read(offset))
    }

    fn short(&self, offset: usize) -> u64 {
        u32::from_ne_bytes(self.read(offset)).into()
    }

    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        let read = self.0.ledger.read_exact_at(&mut bytes, LAYOUT.lane(0) + offset as u64);
        read.expect("the ledger is as long as its layout");
        bytes
    }
}
