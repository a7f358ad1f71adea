//! Reading a capture. Its writer may have died at any moment, and the file may come from any source,
//! so each entry is checked. The first bytes that are no valid entry end the capture.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nbd_ledger::layout::MAX_PAYLOAD;
use nbd_proto::{CommandFlags, CommandType, NbdError, Request};

use crate::file::{CaptureError, header, state};
use crate::format::{CaptureHeader, CaptureState, ENTRIES_OFFSET, ENTRY_BYTES, Entry, EntryKind};
use crate::writer::{self, CaptureWriter};

/// A captured request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedRequest {
    /// The lane it came on.
    pub lane: u16,
    /// The request.
    pub request: Request,
    /// What it was answered with; `None` if no answer was captured.
    pub error: Option<NbdError>,
    /// How many backends took it: more than one if a backend died before it answered.
    pub backends: u32,
    /// When it was first taken: `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    data: u64,
}

/// One step of a capture, in order. A request is named by its index in [`Capture::requests`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureEvent {
    /// A backend was granted the lanes.
    BackendStarted {
        /// Its process number.
        pid: u32,
    },
    /// A request was taken for the first time.
    Request(usize),
    /// A request was answered.
    Answer(usize),
}

/// A capture, without the data of its requests.
#[derive(Debug)]
pub struct Capture {
    file: File,
    /// The device that was captured.
    pub header: CaptureHeader,
    /// Whether it still grows.
    pub state: CaptureState,
    /// All requests.
    pub requests: Vec<CapturedRequest>,
    /// All that happened.
    pub events: Vec<CaptureEvent>,
    /// Bytes at the end that are no whole entry: those of a backend that died while it wrote.
    pub torn: u64,
}

impl Capture {
    /// Reads all entries; their data stays in the file.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Foreign`] if the file is no capture, [`CaptureError::Access`] if it cannot be
    /// read. Invalid entries are no error, they end the capture.
    pub fn read(file: File) -> Result<Self, CaptureError> {
        let (header, _) = header(&file)?;
        let state = state(&file)?;
        let mut capture =
            Self { file, header, state, requests: Vec::new(), events: Vec::new(), torn: 0 };
        let length = capture.file.metadata()?.len();
        let mut latest = HashMap::new();
        let mut at = ENTRIES_OFFSET;
        while let Some(entry) = capture.entry(at, length)? {
            let data = at + ENTRY_BYTES as u64;
            at = data + u64::from(entry.data);
            capture.take(&entry, data, &mut latest);
        }
        capture.torn = length.saturating_sub(at);
        Ok(capture)
    }

    /// The entry at `at`; `None` if there is no whole and valid one.
    fn entry(&self, at: u64, length: u64) -> io::Result<Option<Entry>> {
        if at + ENTRY_BYTES as u64 > length {
            return Ok(None);
        }
        let mut bytes = [0; ENTRY_BYTES];
        self.file.read_exact_at(&mut bytes, at)?;
        let data = at + ENTRY_BYTES as u64;
        let entry = Entry::decode(&bytes, self.header.id)
            .filter(|entry| u32::from(entry.lane) < self.header.lanes)
            .filter(|entry| data + u64::from(entry.data) <= length);
        let Some(found) = entry else {
            return Ok(None);
        };
        let mut checksum = crc32fast::Hasher::new();
        let mut buffer = vec![0; (found.data as usize).min(1 << 20)];
        let mut done = 0;
        while done < u64::from(found.data) {
            let step = (u64::from(found.data) - done).min(buffer.len() as u64) as usize;
            self.file.read_exact_at(&mut buffer[..step], data + done)?;
            checksum.update(&buffer[..step]);
            done += step as u64;
        }
        Ok(entry.filter(|entry| checksum.finalize() == entry.checksum))
    }

    /// Adds an entry. `latest` maps lane and cookie to the latest request with that cookie.
    fn take(&mut self, entry: &Entry, data: u64, latest: &mut HashMap<(u16, u64), usize>) {
        match entry.kind {
            EntryKind::BackendStarted { pid, .. } => {
                self.events.push(CaptureEvent::BackendStarted { pid });
            }
            EntryKind::Answer { cookie, error } => {
                let index = latest.get(&(entry.lane, cookie)).copied();
                if let Some(index) = index.filter(|&index| self.requests[index].error.is_none()) {
                    self.requests[index].error = Some(error);
                    self.events.push(CaptureEvent::Answer(index));
                }
            }
            EntryKind::Request { request, before } => {
                let key = (entry.lane, request.cookie);
                if let Some(&index) = latest.get(&key).filter(|_| before) {
                    // The predecessor may have died after it wrote the answer here and before it
                    // committed it to the ledger, so that answer does not count.
                    self.requests[index].error = None;
                    self.requests[index].backends += 1;
                    return;
                }
                // Such an entry could not be replayed: its data has another length than its request,
                // or the driver could not have sent it.
                let is_kept = request.payload_len() == entry.data && entry.data <= MAX_PAYLOAD;
                if !is_kept || request.command == CommandType::DISC {
                    return;
                }
                latest.insert(key, self.requests.len());
                self.events.push(CaptureEvent::Request(self.requests.len()));
                let (lane, time) = (entry.lane, entry.time);
                let error = None;
                self.requests.push(CapturedRequest {
                    lane,
                    request,
                    error,
                    backends: 1,
                    time,
                    data,
                });
            }
        }
    }

    /// The data of a write; empty for other commands.
    ///
    /// # Errors
    ///
    /// The error of reading the file.
    ///
    /// # Panics
    ///
    /// If there is no request `index`; the same holds for [`Self::describe`].
    pub fn data(&self, index: usize) -> io::Result<Vec<u8>> {
        let recorded = &self.requests[index];
        let mut data = vec![0; recorded.request.payload_len() as usize];
        self.file.read_exact_at(&mut data, recorded.data)?;
        Ok(data)
    }

    /// A request in words, like `write 4096+512 (number 3, lane 0)`.
    #[must_use]
    pub fn describe(&self, index: usize) -> String {
        let CapturedRequest { lane, request, .. } = &self.requests[index];
        let fua = if request.flags.contains(CommandFlags::FUA) { " FUA" } else { "" };
        let range = match request.length {
            0 => String::new(),
            length => format!(" {}+{length}", request.offset),
        };
        format!("{}{fua}{range} (number {}, lane {lane})", request.command, index + 1)
    }

    /// How many backends there were.
    pub fn backend_count(&self) -> usize {
        self.events
            .iter()
            .filter(|event| matches!(event, CaptureEvent::BackendStarted { .. }))
            .count()
    }

    /// The requests without a captured answer.
    pub fn unanswered(&self) -> impl Iterator<Item = usize> {
        self.requests.iter().enumerate().filter(|(_, it)| it.error.is_none()).map(|(at, _)| at)
    }

    /// Writes a capture of the `chosen` requests, with their answers, into an empty file.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Access`] if this file cannot be read or the other one not be written.
    ///
    /// # Panics
    ///
    /// If `chosen` has fewer elements than there are requests.
    pub fn excerpt(&self, file: &File, chosen: &[bool]) -> Result<(), CaptureError> {
        let header = CaptureHeader { limit: u64::MAX, ..self.header.clone() };
        file.write_all_at(&header.encode(), 0)?;
        let mut writer = CaptureWriter::resume(file.try_clone()?)?;
        writer.backend_started(1, 0, 0);
        for event in &self.events {
            match *event {
                CaptureEvent::Request(index) if chosen[index] => {
                    let CapturedRequest { lane, request, time, .. } = &self.requests[index];
                    writer.request((*lane).into(), request, &self.data(index)?, false, *time);
                }
                CaptureEvent::Answer(index) if chosen[index] => {
                    let CapturedRequest { lane, request, error, .. } = &self.requests[index];
                    let error = error.unwrap_or(NbdError::SUCCESS);
                    writer.answer((*lane).into(), request.cookie, error, 0);
                }
                _ => {}
            }
        }
        match writer.commit() {
            CaptureState::Failed(errno) => Err(io::Error::from_raw_os_error(errno).into()),
            _ => Ok(writer::stop(file, CaptureState::Stopped)?),
        }
    }
}

#[cfg(test)]
mod tests;
