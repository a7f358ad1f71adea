//! A backend's end of a capture. A backend commits a request's entry before it executes the request,
//! so the entry is there whatever the request does to the backend.
//!
//! A system call writes the entries to the page cache, so they outlive the process, though not the
//! machine. `end` in the header is written after the entries. Entries beyond it are those of a
//! backend that died between the two writes: it had not executed any of them, and its successor
//! overwrites them.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use nbd_control::backend::ExportInfo;
use nbd_proto::{NbdError, Request};

use crate::file::{CaptureError, header, state};
use crate::format::{
    CaptureHeader, CaptureState, END_OFFSET, ENTRIES_OFFSET, Entry, EntryKind, STATE_OFFSET,
};

/// Entries are written at the latest when they have so many bytes.
const MAX_BUFFERED_BYTES: usize = 1 << 20;

/// Begins a capture in an empty file.
///
/// # Errors
///
/// The error of writing the header.
pub fn begin(
    file: &File,
    device: &str,
    export: ExportInfo,
    lanes: u32,
    limit: u64,
) -> io::Result<CaptureHeader> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let header = CaptureHeader {
        // Each `RandomState` has new random keys, so this is a random number.
        id: RandomState::new().build_hasher().finish(),
        export,
        lanes,
        limit,
        began: now.as_secs(),
        device: device.into(),
    };
    file.write_all_at(&header.encode(), 0)?;
    Ok(header)
}

/// Ends a capture. Its writer reads the state before each write, so it writes no more entries.
///
/// # Errors
///
/// The error of writing the state.
pub fn stop(file: &File, state: CaptureState) -> io::Result<()> {
    file.write_all_at(&state.encode().to_le_bytes(), STATE_OFFSET)
}

/// Appends to a capture.
#[derive(Debug)]
pub struct CaptureWriter {
    file: File,
    id: u64,
    limit: u64,
    end: u64,
    state: CaptureState,
    collected: Vec<u8>,
}

impl CaptureWriter {
    /// Continues a capture. There is one writer at a time: the backend that owns the lanes.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Foreign`] if the file is no capture, [`CaptureError::Access`] if it cannot be
    /// read or cut to its end.
    pub fn resume(file: File) -> Result<Self, CaptureError> {
        let (header, end) = header(&file)?;
        let state = state(&file)?;
        let length = file.metadata()?.len();
        let writer = Self {
            id: header.id,
            limit: header.limit,
            end: end.clamp(ENTRIES_OFFSET, length.max(ENTRIES_OFFSET)),
            file,
            state,
            collected: Vec::new(),
        };
        if state == CaptureState::Going {
            writer.file.set_len(writer.end)?;
        }
        Ok(writer)
    }

    /// Whether entries are still written; and if not, why.
    pub fn state(&self) -> CaptureState {
        self.state
    }

    /// Adds that a backend was granted the lanes.
    pub fn backend_started(&mut self, generation: u64, pid: u32, time: u64) {
        self.add(0, EntryKind::BackendStarted { generation, pid }, time, &[]);
    }

    /// Adds that a request was taken; `before` if a predecessor had taken it too.
    pub fn request(
        &mut self,
        lane: u32,
        request: &Request,
        payload: &[u8],
        before: bool,
        time: u64,
    ) {
        self.add(lane, EntryKind::Request { request: *request, before }, time, payload);
    }

    /// Adds that a request is about to be answered.
    pub fn answer(&mut self, lane: u32, cookie: u64, error: NbdError, time: u64) {
        self.add(lane, EntryKind::Answer { cookie, error }, time, &[]);
    }

    fn add(&mut self, lane: u32, kind: EntryKind, time: u64, data: &[u8]) {
        if self.state != CaptureState::Going {
            return;
        }
        let checksum = crc32fast::hash(data);
        let entry = Entry { kind, lane: lane as u16, time, data: data.len() as u32, checksum };
        self.collected.extend_from_slice(&entry.encode(self.id));
        self.collected.extend_from_slice(data);
        if self.collected.len() >= MAX_BUFFERED_BYTES {
            self.commit();
        }
    }

    /// Writes what was added. When this returns, the entries are in the file or the capture is over.
    pub fn commit(&mut self) -> CaptureState {
        if self.state == CaptureState::Going && !self.collected.is_empty() {
            self.state = self.write().unwrap_or_else(|error| {
                // A full disk may have taken a part. Failing to remove it does no harm: `end` does not
                // include it, and readers stop at an entry that is not whole.
                let _ = self.file.set_len(self.end);
                CaptureState::Failed(error.raw_os_error().unwrap_or(0))
            });
            if matches!(self.state, CaptureState::Full | CaptureState::Failed(_)) {
                // The state in memory keeps this writer quiet if the file cannot be written either.
                let _ = stop(&self.file, self.state);
            }
        }
        self.collected.clear();
        self.collected.shrink_to(MAX_BUFFERED_BYTES);
        self.state
    }

    fn write(&mut self) -> io::Result<CaptureState> {
        let state = state(&self.file)?;
        if state != CaptureState::Going {
            return Ok(state);
        }
        let end = self.end + self.collected.len() as u64;
        if end > self.limit {
            return Ok(CaptureState::Full);
        }
        self.file.write_all_at(&self.collected, self.end)?;
        // Only now, so that a successor's `end` never includes entries that are not there.
        self.file.write_all_at(&end.to_le_bytes(), END_OFFSET)?;
        self.end = end;
        Ok(state)
    }
}
