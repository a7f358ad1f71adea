//! Creating a ledger, opening it in a backend, and what a process knows about a lane.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

use crate::audit::{self, Corruption};
use crate::layout::{
    FIRST_SEQUENCE, FlightRecord, Header, LaneControl, Layout, MAGIC, Slot, SlotIndex,
    TransmitRecord, VERSION,
};
use crate::map::{LaneWords, Map, Ring, TransmitArea};
use crate::receive::Receiver;
use crate::recover::{self, Recovery};
use crate::transmit::Transmitter;

/// Why a ledger cannot be made or used.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// A system call failed.
    #[error("cannot {action} the ledger")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No sane predecessor can have left this memory. It must not be replayed.
    #[error("the ledger is damaged")]
    Corrupt(#[from] Corruption),
    /// The lane was opened already through this mapping; it is not given back.
    #[error("lane {0} is open in this process already")]
    LaneTaken(u32),
}

fn system(action: &'static str) -> impl FnOnce(nix::Error) -> LedgerError {
    move |errno| LedgerError::System { action, source: errno.into() }
}

/// A ledger that this process may write to: a backend's.
#[derive(Debug)]
pub struct Ledger {
    map: Arc<Map>,
    file: OwnedFd,
    opened: Vec<AtomicBool>,
}

impl Ledger {
    /// Makes a new, empty ledger: a memfd sealed against any change of its size.
    ///
    /// # Errors
    ///
    /// [`LedgerError::System`] if the memfd cannot be made, filled or sealed.
    ///
    /// # Panics
    ///
    /// If `layout` is not sound; see [`Layout::is_sound`].
    pub fn create(layout: &Layout) -> Result<OwnedFd, LedgerError> {
        assert!(layout.is_sound(), "layout {layout:?}");
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file =
            std::fs::File::from(memfd_create(c"nbd-ledger", flags).map_err(system("create"))?);
        let written = file.set_len(layout.size()).and_then(|()| write_initial_state(&file, layout));
        written.map_err(|source| LedgerError::System { action: "fill", source })?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(system("seal"))?;
        Ok(file.into())
    }

    /// Maps a ledger for writing, after checking that it has the shape that the holder named.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Corrupt`] if `file` is not a sealed memfd of `layout`'s size or its header
    /// does not describe `layout`; [`LedgerError::System`] if it cannot be mapped.
    pub fn open(file: OwnedFd, layout: &Layout) -> Result<Arc<Self>, LedgerError> {
        audit::check_file(file.as_fd(), layout)?;
        let map = Map::new(file.as_fd(), *layout, true).map_err(system("map"))?;
        audit::check_header(map.header(), layout)?;
        let opened = (0..layout.lanes).map(|_| AtomicBool::new(false)).collect();
        Ok(Arc::new(Self { map: Arc::new(map), file, opened }))
    }

    /// Opens a lane whose server end is `socket`, checks all that the ledger says about it, and
    /// brings it into the state from which a successor continues. The predecessor must be dead: this
    /// call changes what a live one relies on.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LaneTaken`] if this mapping has opened the lane already,
    /// [`LedgerError::Corrupt`] if the lane's words contradict each other, and
    /// [`LedgerError::System`] if ring or transmit area cannot be mapped. After the latter two the
    /// lane may be tried again.
    ///
    /// # Panics
    ///
    /// If the layout has no such lane.
    pub fn open_lane(
        self: &Arc<Self>,
        index: u32,
        socket: OwnedFd,
    ) -> Result<(Receiver, Transmitter, Recovery), LedgerError> {
        if self.opened[index as usize].swap(true, Ordering::AcqRel) {
            return Err(LedgerError::LaneTaken(index));
        }
        // Given back only on failure: after success ring slices and tickets of the lane may live on.
        self.take_over(index, socket)
            .inspect_err(|_| self.opened[index as usize].store(false, Ordering::Release))
    }

    fn take_over(
        self: &Arc<Self>,
        index: u32,
        socket: OwnedFd,
    ) -> Result<(Receiver, Transmitter, Recovery), LedgerError> {
        let layout = self.map.layout();
        let ring = Ring::new(self.file.as_fd(), layout, index).map_err(system("map"))?;
        let area = TransmitArea::new(self.file.as_fd(), layout, index).map_err(system("map"))?;
        let findings = audit::check_lane(&self.map, index, &ring, area.as_slice())?;
        let lane = Arc::new(Lane {
            ledger: Arc::clone(self),
            words: LaneWords::new(&self.map, index),
            index,
            ring,
            socket,
            complete: AtomicU64::new(findings.complete()),
        });
        Ok(recover::take_over(&lane, area, &findings))
    }

    /// The shared header: generation, times, the sticky flush error.
    pub fn header(&self) -> &Header {
        self.map.header()
    }

    /// The shape of the ledger.
    pub fn layout(&self) -> &Layout {
        self.map.layout()
    }

    /// The errno of the first flush that failed since attach, if any.
    pub fn flush_error(&self) -> Option<i32> {
        match self.header().flush_error.load(Ordering::Acquire) {
            0 => None,
            errno => Some(i32::try_from(errno).unwrap_or(i32::MAX)),
        }
    }

    /// Remembers that a flush failed. The first errno stays, see [`Header::flush_error`].
    pub fn set_flush_error(&self, errno: i32) {
        let errno = u32::try_from(errno).unwrap_or(0).max(1);
        let word = &self.header().flush_error;
        // A failed exchange means that an earlier error is there, and that one is kept.
        let _ = word.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
    }
}

fn write_initial_state(file: &std::fs::File, layout: &Layout) -> io::Result<()> {
    let mut header = Vec::with_capacity(36);
    header.extend_from_slice(&MAGIC.to_ne_bytes());
    header.extend_from_slice(&VERSION.to_ne_bytes());
    header.extend_from_slice(&layout.lanes.to_ne_bytes());
    header.extend_from_slice(&layout.ring.to_ne_bytes());
    header.extend_from_slice(&layout.transmit.to_ne_bytes());
    header.extend_from_slice(&layout.max_payload.to_ne_bytes());
    file.write_all_at(&header, 0)?;
    let sequence = std::mem::offset_of!(LaneControl, transmit)
        + std::mem::offset_of!(TransmitRecord, sequence);
    (0..layout.lanes).try_for_each(|lane| {
        file.write_all_at(&FIRST_SEQUENCE.to_ne_bytes(), layout.lane(lane) + sequence as u64)
    })
}

/// A lane as this process has it open: shared by its receiver, its transmitter and its tickets.
#[derive(Debug)]
pub struct Lane {
    ledger: Arc<Ledger>,
    pub(crate) words: LaneWords,
    index: u32,
    pub(crate) ring: Ring,
    socket: OwnedFd,
    /// The last transmission that the kernel has taken entirely: slots staged up to it are free.
    /// Private, as the committed number in the ledger is one that may still be under way.
    pub(crate) complete: AtomicU64,
}

impl Lane {
    /// The lane's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The ledger it belongs to.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The server end.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn control(&self) -> &LaneControl {
        self.words.control()
    }

    pub(crate) fn slot(&self, slot: SlotIndex) -> &Slot {
        self.words.slot(slot)
    }

    pub(crate) fn flight_record(&self, number: u64) -> &FlightRecord {
        self.words.flight_record(number)
    }

    pub(crate) fn is_free(&self, slot: SlotIndex) -> bool {
        self.slot(slot).state().is_free(self.complete.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests;
