//! The words of the ledger and where they lie.
//!
//! ```text
//! 0        header, one page
//! 4096     lane 0: control page │ slots │ records │ receive ring │ transmit area
//! …        lane 1 …
//! ```
//!
//! All numbers are in the machine's byte order: the ledger never leaves the machine. Every word
//! is an atomic, because other processes read along and because a successor reads what an
//! unknown program wrote. `docs/reference/backend-protocol.md` lists the offsets for other languages; the
//! assertions below keep both in step.

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// First word of the ledger: "NBDLEDG1" read as a big-endian number.
pub const MAGIC: u64 = 0x4e42_444c_4544_4731;
/// Layout version. Any change of this file that moves a word or its meaning raises it.
pub const VERSION: u32 = 3;
/// Bytes of the header and of a lane's control page; all other sizes are multiples of it.
pub const PAGE: u64 = 4096;
/// Request slots of a lane. The driver keeps at most 128 requests a queue in flight.
pub const SLOTS: u32 = 256;
/// Records of a lane's flight recorder.
pub const FLIGHT_RECORDS: u32 = 4096;
/// Latency histograms of a lane: reads, writes, all other commands, flushes.
pub const HISTOGRAMS: usize = 4;
/// Marks of when requests came that a lane's control page has room for.
pub const MARKS: usize = 5;
/// Buckets of a histogram; [`crate::latency`] defines their bounds.
pub const HISTOGRAM_BUCKETS: usize = 103;
/// Upper bound for the lanes of a device.
pub const MAX_LANES: u32 = 16;
/// Longest payload of one request in bytes: the most that the driver can be told to send
/// (`max_hw_sectors` is 65536).
pub const MAX_PAYLOAD: u32 = 32 << 20;

#[cfg(not(all(target_pointer_width = "64", target_os = "linux")))]
compile_error!("the ledger keeps 64-bit Linux mmsghdr structures");

/// The shape of a ledger: enough to compute every offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of lanes, 1 to [`MAX_LANES`].
    pub lanes: u32,
    /// Bytes of a lane's receive ring: a multiple of [`PAGE`] that holds a whole request.
    pub ring: u64,
    /// Bytes of a lane's transmit area: a multiple of [`PAGE`] that holds a whole reply.
    pub transmit: u64,
    /// Longest payload of a request in bytes, either direction.
    pub max_payload: u32,
}

impl Layout {
    /// The usual shape. The memory is sparse: only what traffic touches becomes resident.
    #[must_use]
    pub const fn with_lanes(lanes: u32) -> Self {
        Self {
            lanes,
            ring: 2 * MAX_PAYLOAD as u64,
            transmit: MAX_PAYLOAD as u64 + (1 << 20),
            max_payload: MAX_PAYLOAD,
        }
    }

    /// Whether a ledger of this shape can work: all regions are whole pages and hold a request or
    /// reply of the longest payload.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        let payload = self.max_payload as u64;
        self.lanes >= 1
            && self.lanes <= MAX_LANES
            && self.max_payload >= 4096
            && self.ring.is_multiple_of(PAGE)
            && self.transmit.is_multiple_of(PAGE)
            && self.ring >= payload + PAGE
            && self.transmit >= payload + PAGE
            && self.ring <= 1 << 32
            && self.transmit <= 1 << 32
    }

    /// Offset of a lane's control page.
    #[must_use]
    pub const fn lane(&self, index: u32) -> u64 {
        PAGE + index as u64 * self.stride()
    }

    /// Offset of a lane's slots, relative to its control page.
    #[must_use]
    pub const fn slots(&self) -> u64 {
        PAGE
    }

    /// Offset of a lane's flight records, relative to its control page.
    #[must_use]
    pub const fn flight_records(&self) -> u64 {
        self.slots() + SLOTS as u64 * size_of::<Slot>() as u64
    }

    /// Offset of a lane's receive ring, relative to its control page.
    #[must_use]
    pub const fn ring_offset(&self) -> u64 {
        self.flight_records() + FLIGHT_RECORDS as u64 * size_of::<FlightRecord>() as u64
    }

    /// Offset of a lane's transmit area, relative to its control page.
    #[must_use]
    pub const fn transmit_offset(&self) -> u64 {
        self.ring_offset() + self.ring
    }

    const fn stride(&self) -> u64 {
        self.transmit_offset() + self.transmit
    }

    /// Size of the whole ledger in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.lane(self.lanes)
    }
}

/// Index of a slot in its lane's table, below [`SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(pub(crate) u16);

impl SlotIndex {
    /// The index as a number.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS as u16).map(Self)
    }
}

/// First page of the ledger.
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// [`Layout::lanes`].
    pub lanes: AtomicU32,
    /// [`Layout::ring`].
    pub ring: AtomicU64,
    /// [`Layout::transmit`].
    pub transmit: AtomicU64,
    /// [`Layout::max_payload`].
    pub max_payload: AtomicU32,
    /// The errno of the first flush that failed, or 0. Once set it stays: data that the kernel
    /// could not write is gone from the page cache, and a later flush would succeed falsely.
    pub flush_error: AtomicU32,
    /// How many backends have taken the ledger over.
    pub generation: AtomicU64,
    /// `CLOCK_MONOTONIC` nanoseconds at which the latest backend had recovered.
    pub ready_at: AtomicU64,
    /// The same for the first reply of the latest backend; 0 before it.
    pub first_answer_at: AtomicU64,
    /// [`Header::generation`] of the last backend whose process has left the device and lives on. If that
    /// is the latest one, it uses neither lanes nor ledger any more.
    pub left_generation: AtomicU64,
}

/// What is being received, or was last: one of a pair, see [`LaneControl`].
#[repr(C, align(128))]
#[derive(Debug)]
pub struct ReceiveRecord {
    /// Stream position before this receive: the bytes consumed by all earlier ones.
    pub received: AtomicU64,
    /// Stream position that lies at offset 0 of the ring.
    pub base: AtomicU64,
    /// Bytes asked for: the upper bound of `message.msg_len`.
    pub wanted: AtomicU64,
    /// Makes the record's parts line up; always 0.
    pub reserved: AtomicU64,
    /// The kernel stores the number of bytes into `msg_len`, at byte 56.
    pub message: Message,
}

/// What is being sent, or was last: one of a pair, see [`LaneControl`].
#[repr(C, align(128))]
#[derive(Debug)]
pub struct TransmitRecord {
    /// Number of the transmission. Replies staged under a number up to this one are answered.
    pub sequence: AtomicU64,
    /// Bytes of the transmission, from offset 0 of the transmit area.
    pub length: AtomicU64,
    /// Bytes sent by earlier calls of the same transmission.
    pub sent: AtomicU64,
    /// Makes the record's parts line up; always 0.
    pub reserved: AtomicU64,
    /// The kernel stores the number of bytes into `msg_len`, at byte 56.
    pub message: Message,
}

/// Room for a `struct mmsghdr` of 64-bit Linux.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct Message {
    pub(crate) header: [AtomicU64; 7],
    /// Bytes transferred, as stored by the kernel (`mmsghdr.msg_len`).
    pub msg_len: AtomicU32,
    pub(crate) padding: AtomicU32,
}

/// A lane's control page. Of each pair of records, `pair[epoch & 1]` is the valid one: the other
/// is filled in first, then the epoch is stored.
#[repr(C)]
#[derive(Debug)]
pub struct LaneControl {
    /// Selects the valid receive record.
    pub receive_epoch: AtomicU64,
    /// Stream position up to which requests have been taken into slots. Slots whose request
    /// lies at or beyond it are not valid yet. Beyond the received bytes it means that a payload
    /// too long to keep is being skipped.
    pub parsed: AtomicU64,
    /// Selects the valid transmit record.
    pub transmit_epoch: AtomicU64,
    /// `CLOCK_MONOTONIC` nanoseconds of the last receive that returned bytes.
    pub last_received_at: AtomicU64,
    /// How many executions the flight recorder has seen. The next one is filled in at index
    /// `recorded` modulo [`FLIGHT_RECORDS`]; this word's store commits it.
    pub recorded: AtomicU64,
    /// The holder's own, which backends leave alone: [`crate::arrivals`], a stream position and a time
    /// for each mark.
    pub marks: [AtomicU64; 2 * MARKS],
    reserved: AtomicU64,
    /// The pair of receive records.
    pub receive: [ReceiveRecord; 2],
    /// The pair of transmit records.
    pub transmit: [TransmitRecord; 2],
    /// Totals since attach.
    pub totals: Totals,
    /// How long requests took, since attach; by their kinds.
    pub latencies: [Histogram; HISTOGRAMS],
}

/// Counts of answered requests and their bytes, since attach. If a backend dies after it counts a
/// transmission and before it commits it (no system call lies between), its requests are counted
/// again when a successor answers them. Otherwise the counts are exact.
#[repr(C)]
#[derive(Debug)]
pub struct Totals {
    /// Reads answered, errors included.
    pub reads: AtomicU64,
    /// Writes answered, errors included.
    pub writes: AtomicU64,
    /// Flushes answered, errors included.
    pub flushes: AtomicU64,
    /// Trims answered, errors included.
    pub trims: AtomicU64,
    /// All other requests answered.
    pub others: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Bytes read without error.
    pub read_bytes: AtomicU64,
    /// Bytes written without error.
    pub written_bytes: AtomicU64,
}

/// How long answered requests took, from the ring to the end of their execution. Counted together
/// with [`Totals`], by backends that use the flight recorder.
#[repr(C)]
#[derive(Debug)]
pub struct Histogram {
    /// Sum of their times in nanoseconds.
    pub sum: AtomicU64,
    /// How many fell into each bucket.
    pub buckets: [AtomicU64; HISTOGRAM_BUCKETS],
}

/// A request in flight.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Slot {
    /// See [`SlotState`]. The only word of a slot that is stored to commit something.
    pub state: AtomicU64,
    /// The request's cookie.
    pub cookie: AtomicU64,
    /// The request's offset in bytes.
    pub offset: AtomicU64,
    /// The request's length in bytes.
    pub length: AtomicU32,
    /// Command flags in the upper, command type in the lower half.
    pub kind: AtomicU32,
    /// Stream position of the request's first byte. A payload follows 28 bytes later.
    pub position: AtomicU64,
    /// `CLOCK_MONOTONIC` nanoseconds at which the request was taken from the ring.
    pub received_at: AtomicU64,
    /// The same for the latest begin of its execution; 0 before the first.
    pub started_at: AtomicU64,
    /// How often its execution was begun.
    pub attempts: AtomicU32,
    /// How many backends crashed while they executed it.
    pub crashes: AtomicU32,
}

/// An execution of a request: one record of the flight recorder's ring.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct FlightRecord {
    /// The request's cookie.
    pub cookie: AtomicU64,
    /// The request's offset in bytes.
    pub offset: AtomicU64,
    /// The request's length in bytes.
    pub length: AtomicU32,
    /// Command flags in the upper, command type in the lower half.
    pub kind: AtomicU32,
    /// `CLOCK_MONOTONIC` nanoseconds at which the request was taken from the ring.
    pub received_at: AtomicU64,
    /// The same for the begin of its execution; 0 if it was answered without one.
    pub started_at: AtomicU64,
    /// The same for its end.
    pub finished_at: AtomicU64,
    /// How often its execution was begun, by all backends together.
    pub attempts: AtomicU32,
    /// The NBD error that it was answered with, 0 for none.
    pub error: AtomicU32,
    /// [`Header::generation`] of the backend that executed it.
    pub generation: AtomicU64,
}

/// The meaning of a slot's `state` word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// 0: never used.
    Vacant,
    /// 1: holds a request that is not answered.
    Pending,
    /// n ≥ 2: its reply belongs to transmission n; answered once that is committed, pending as
    /// long as it is not.
    Staged(u64),
}

/// Number of the transmission that a new ledger counts as committed.
pub const FIRST_SEQUENCE: u64 = 1;

impl SlotState {
    /// Reads the word.
    #[must_use]
    pub const fn decode(word: u64) -> Self {
        match word {
            0 => Self::Vacant,
            1 => Self::Pending,
            n => Self::Staged(n),
        }
    }

    /// The word to store.
    #[must_use]
    pub const fn encode(self) -> u64 {
        match self {
            Self::Vacant => 0,
            Self::Pending => 1,
            Self::Staged(n) => n,
        }
    }

    /// Whether the slot may take a new request, given that transmissions up to `complete` are
    /// entirely in the kernel's hands.
    #[must_use]
    pub const fn is_free(self, complete: u64) -> bool {
        match self {
            Self::Vacant => true,
            Self::Pending => false,
            Self::Staged(n) => n <= complete,
        }
    }
}

impl Slot {
    pub(crate) fn state(&self) -> SlotState {
        SlotState::decode(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn set_state(&self, state: SlotState) {
        self.state.store(state.encode(), Ordering::Release);
    }
}

impl LaneControl {
    /// The valid receive record.
    pub fn receiving(&self) -> &ReceiveRecord {
        &self.receive[(self.receive_epoch.load(Ordering::Acquire) & 1) as usize]
    }

    /// The valid transmit record.
    pub fn transmitting(&self) -> &TransmitRecord {
        &self.transmit[(self.transmit_epoch.load(Ordering::Acquire) & 1) as usize]
    }
}

const _: () = {
    assert!(size_of::<libc::mmsghdr>() == 64);
    assert!(offset_of!(libc::mmsghdr, msg_len) == 56);
    assert!(size_of::<Message>() == 64 && offset_of!(Message, msg_len) == 56);
    assert!(size_of::<Header>() <= PAGE as usize);
    assert!(offset_of!(Header, flush_error) == 36 && offset_of!(Header, left_generation) == 64);
    assert!(size_of::<Slot>() == 64 && offset_of!(Slot, attempts) == 56);
    assert!(size_of::<FlightRecord>() == 64 && offset_of!(FlightRecord, attempts) == 48);
    assert!(offset_of!(LaneControl, recorded) == 32 && offset_of!(LaneControl, marks) == 40);
    assert!(size_of::<ReceiveRecord>() == 128 && offset_of!(ReceiveRecord, message) == 32);
    assert!(size_of::<TransmitRecord>() == 128 && offset_of!(TransmitRecord, message) == 32);
    assert!(offset_of!(LaneControl, receive) == 128);
    assert!(offset_of!(LaneControl, transmit) == 384);
    assert!(offset_of!(LaneControl, totals) == 640);
    assert!(offset_of!(LaneControl, latencies) == 704 && size_of::<Histogram>() == 832);
    assert!(size_of::<LaneControl>() <= PAGE as usize);
    assert!(Layout::with_lanes(1).is_sound() && Layout::with_lanes(MAX_LANES).is_sound());
};

#[cfg(test)]
mod tests;
