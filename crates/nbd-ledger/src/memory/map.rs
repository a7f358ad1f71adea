//! Mapping the ledger. One of the two modules of this crate that may say `unsafe`.
//!
//! Other processes map the same memory, and the kernel writes into it. So every word is an
//! atomic, and plain byte slices are handed out only for ranges that the rules of this crate
//! give to one owner at a time: [`Ring`] argues for received bytes, [`TransmitArea`] for replies.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap, mmap_anonymous, munmap};

use crate::layout::{
    FLIGHT_RECORDS, FlightRecord, Header, LaneControl, Layout, SLOTS, Slot, SlotIndex,
};

/// A mapped range of memory, unmapped on drop.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is an address range of the process, valid in all its threads; access to what
// lies in it goes through atomics or through the owners described in the module documentation.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of_file(
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        protection: ProtFlags,
    ) -> nix::Result<Self> {
        let length = usize::try_from(length).map_err(|_| nix::Error::EOVERFLOW)?;
        let size = NonZeroUsize::new(length).ok_or(nix::Error::EINVAL)?;
        let offset = i64::try_from(offset).map_err(|_| nix::Error::EOVERFLOW)?;
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, offset)? };
        Ok(Self { start: start.cast(), length })
    }

    /// The same `length` bytes of the file twice in a row.
    fn twice(file: BorrowedFd<'_>, offset: u64, length: u64) -> nix::Result<Self> {
        let once = usize::try_from(length).map_err(|_| nix::Error::EOVERFLOW)?;
        let size = NonZeroUsize::new(once).ok_or(nix::Error::EINVAL)?;
        let both = NonZeroUsize::new(2 * once).ok_or(nix::Error::EINVAL)?;
        let offset = i64::try_from(offset).map_err(|_| nix::Error::EOVERFLOW)?;
        // SAFETY: reserves a fresh range of both lengths; nothing is accessible in it yet.
        let start = unsafe {
            mmap_anonymous(None, both, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE)?.cast::<u8>()
        };
        let reserved = Self { start, length: both.get() };
        for half in [0, once] {
            let address = NonZeroUsize::new(start.as_ptr() as usize + half);
            // SAFETY: MAP_FIXED replaces one half of the range reserved above, which is ours
            // alone and holds nothing yet.
            unsafe {
                mmap(
                    address,
                    size,
                    ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                    MapFlags::MAP_SHARED | MapFlags::MAP_FIXED,
                    file,
                    offset,
                )?;
            }
        }
        Ok(reserved)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this object and every borrow of it has ended.
        // It fails only for arguments that are no mapping, and nothing could be done about it.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

/// Header, control pages and slots of a ledger, readable and perhaps writable.
#[derive(Debug)]
pub(crate) struct Map {
    words: Mapping,
    layout: Layout,
}

impl Map {
    /// Maps the ledger in `file`, whose size the caller has checked against `layout`.
    pub(crate) fn new(file: BorrowedFd<'_>, layout: Layout, writable: bool) -> nix::Result<Self> {
        let mut protection = ProtFlags::PROT_READ;
        protection.set(ProtFlags::PROT_WRITE, writable);
        let words = Mapping::of_file(file, 0, layout.size(), protection)?;
        let map = Self { words, layout };
        if writable {
            map.lock_control_pages();
        }
        Ok(map)
    }

    /// Keeps the control pages from being swapped out. The kernel stores `msg_len` after it has
    /// moved the bytes; if that store had to wait for a page to be read back, and a SIGKILL were
    /// pending, the kernel would give the store up and the count would be lost.
    fn lock_control_pages(&self) {
        for lane in 0..self.layout.lanes {
            let page = NonNull::from(self.lane(lane)).cast();
            // SAFETY: a page of this mapping; locking it changes nothing that the program sees.
            // Ignored: where RLIMIT_MEMLOCK forbids even a page, the device works with that risk.
            let _ = unsafe { mlock(page, size_of::<LaneControl>()) };
        }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn at<T>(&self, offset: u64) -> &T {
        let offset = offset as usize;
        assert!(offset + size_of::<T>() <= self.words.length, "word beyond the ledger");
        // SAFETY: in bounds by the assertion; the mapping is page-aligned and every offset that
        // `Layout` computes is a multiple of T's alignment; T consists of atomics only, for which
        // any bit pattern is valid and concurrent writers are defined behaviour. This crate only
        // loads from a read-only mapping, and the store of a caller who ignores what
        // `Inspector::header` says is a fault, not a change of memory.
        unsafe { &*self.words.start.as_ptr().add(offset).cast::<T>() }
    }

    pub(crate) fn header(&self) -> &Header {
        self.at(0)
    }

    pub(crate) fn lane(&self, lane: u32) -> &LaneControl {
        assert!(lane < self.layout.lanes, "lane beyond the ledger");
        self.at(self.layout.lane(lane))
    }

    pub(crate) fn slot(&self, lane: u32, slot: SlotIndex) -> &Slot {
        assert!(lane < self.layout.lanes && u32::from(slot.0) < SLOTS, "slot beyond the ledger");
        let table = self.layout.lane(lane) + self.layout.slots();
        self.at(table + slot.get() as u64 * size_of::<Slot>() as u64)
    }

    /// The flight record of the execution with this number.
    pub(crate) fn flight_record(&self, lane: u32, number: u64) -> &FlightRecord {
        assert!(lane < self.layout.lanes, "lane beyond the ledger");
        let records = self.layout.lane(lane) + self.layout.flight_records();
        self.at(records + number % u64::from(FLIGHT_RECORDS) * size_of::<FlightRecord>() as u64)
    }
}

/// A lane's words, looked up once, because each request stores to several of them.
#[derive(Debug)]
pub(crate) struct LaneWords {
    control: NonNull<LaneControl>,
    slots: NonNull<[Slot; SLOTS as usize]>,
    records: NonNull<[FlightRecord; FLIGHT_RECORDS as usize]>,
    /// Keeps them where they are.
    _map: Arc<Map>,
}

// SAFETY: the pointers are borrowed references in all but lifetime, to atomics in a mapping that
// `_map` keeps, and a `Map` may be shared by threads.
unsafe impl Send for LaneWords {}
// SAFETY: as above.
unsafe impl Sync for LaneWords {}

impl LaneWords {
    pub(crate) fn new(map: &Arc<Map>, lane: u32) -> Self {
        let start = map.layout.lane(lane);
        Self {
            control: map.lane(lane).into(),
            slots: map.at::<[Slot; SLOTS as usize]>(start + map.layout.slots()).into(),
            records: map
                .at::<[FlightRecord; FLIGHT_RECORDS as usize]>(start + map.layout.flight_records())
                .into(),
            _map: Arc::clone(map),
        }
    }

    pub(crate) fn control(&self) -> &LaneControl {
        // SAFETY: made from a reference that lives as long as `_map`.
        unsafe { self.control.as_ref() }
    }

    pub(crate) fn slot(&self, slot: SlotIndex) -> &Slot {
        // SAFETY: as in `control`.
        let slots = unsafe { self.slots.as_ref() };
        &slots[slot.get()]
    }

    /// The flight record of the execution with this number.
    pub(crate) fn flight_record(&self, number: u64) -> &FlightRecord {
        // SAFETY: as in `control`.
        let records = unsafe { self.records.as_ref() };
        &records[(number % u64::from(FLIGHT_RECORDS)) as usize]
    }
}

/// The receive ring of a lane, mapped twice in a row so that every request is contiguous.
///
/// Only the kernel writes into it, and only where [`Self::window`] lets it: the lane's one
/// receiver asks for windows of free space. Bytes of a request in flight are not free until its
/// ticket was consumed, so a slice from [`Self::bytes`] that lives no longer than the ticket
/// never changes under its reader.
#[derive(Debug)]
pub(crate) struct Ring {
    twice: Mapping,
    size: u64,
}

impl Ring {
    pub(crate) fn new(file: BorrowedFd<'_>, layout: &Layout, lane: u32) -> nix::Result<Self> {
        let offset = layout.lane(lane) + layout.ring_offset();
        Ok(Self { twice: Mapping::twice(file, offset, layout.ring)?, size: layout.ring })
    }

    fn check(&self, offset: u64, length: u64) {
        assert!(offset < self.size && length <= self.size, "range beyond the receive ring");
    }

    /// Received bytes.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> &[u8] {
        self.check(offset, length);
        // SAFETY: in bounds, as the ring is mapped twice and offset and length are each at most
        // once its size; nobody writes the range meanwhile, see the type's documentation.
        unsafe {
            std::slice::from_raw_parts(self.twice.start.as_ptr().add(offset as usize), length as _)
        }
    }

    /// Where the kernel shall store the next bytes.
    pub(crate) fn window(&self, offset: u64, length: u64) -> libc::iovec {
        self.check(offset, length);
        // SAFETY: in bounds as in `bytes`; a pointer is made, not followed.
        let start = unsafe { self.twice.start.as_ptr().add(offset as usize) };
        libc::iovec { iov_base: start.cast(), iov_len: length as usize }
    }

    /// Copies bytes to the ring's beginning; both ranges lie in the first mapping and do not
    /// overlap, and nothing live lies in the target.
    pub(crate) fn copy_to_start(&self, offset: u64, length: u64) {
        assert!(length <= offset && offset + length <= self.size, "overlapping move in the ring");
        let start = self.twice.start.as_ptr();
        // SAFETY: disjoint and in bounds by the assertion; the target is free by the contract,
        // so no slice of it exists, and only the one receiver calls this.
        unsafe {
            std::ptr::copy_nonoverlapping(start.add(offset as usize), start, length as usize);
        }
    }
}

/// The transmit area of a lane. There is one for a lane and process, owned by its transmitter.
#[derive(Debug)]
pub(crate) struct TransmitArea {
    bytes: Mapping,
}

impl TransmitArea {
    pub(crate) fn new(file: BorrowedFd<'_>, layout: &Layout, lane: u32) -> nix::Result<Self> {
        let offset = layout.lane(lane) + layout.transmit_offset();
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        Ok(Self { bytes: Mapping::of_file(file, offset, layout.transmit, both)? })
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the whole mapping; it changes only through `&mut self`, and other live
        // processes do not write it: a lane has one backend at a time, by the holder's fencing.
        unsafe { std::slice::from_raw_parts(self.bytes.start.as_ptr(), self.bytes.length) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and unique by `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.start.as_ptr(), self.bytes.length) }
    }
}

#[cfg(test)]
mod tests;
