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
use crate::map::{LaneWords, Map, Ring};

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

pub(crate) fn system(action: &'static str) -> impl FnOnce(nix::Error) -> LedgerError {
    move |errno| LedgerError::System { action, source: errno.into() }
}

/// A ledger that this process may write to: a backend's.
#[derive(Debug)]
pub struct Ledger {
    pub(crate) map: Arc<Map>,
    pub(crate) file: OwnedFd,
    /// Which lanes are open in this process.
    pub(crate) opened: Vec<AtomicBool>,
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

    /// Notes that this process, the latest backend, has left the device and lives on. It must use neither
    /// lanes nor ledger afterwards.
    pub fn note_departure(&self) {
        let header = self.header();
        let generation = header.generation.load(Ordering::Relaxed);
        // Release: the holder takes it for the end of all that this process did with the device.
        header.left_generation.store(generation, Ordering::Release);
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
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) words: LaneWords,
    pub(crate) index: u32,
    pub(crate) ring: Ring,
    pub(crate) socket: OwnedFd,
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
