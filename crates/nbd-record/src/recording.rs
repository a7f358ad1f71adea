//! Reading a recording, whoever wrote it and however it ended. It may come from anybody, so nothing
//! in it is believed: what does not fit ends it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nbd_ledger::layout::MAX_PAYLOAD;
use nbd_proto::{CommandFlags, CommandType, NbdError, Request};
use nix::fcntl::OFlag;
use thiserror::Error;

use crate::format::{END, ENTRIES, ENTRY, Entry, Header, Kind, STATE, State, long};
use crate::writer::Writer;

/// Why a file cannot be used as a recording.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// It is something else.
    #[error("is no recording of `nbd-ctl record`")]
    Foreign,
    /// The system says no.
    #[error("cannot be opened, read or written")]
    Access(#[from] io::Error),
}

/// A request that was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The lane it came on.
    pub lane: u16,
    /// The request.
    pub request: Request,
    /// What it was answered with; `None` if nobody is known to have answered it.
    pub error: Option<NbdError>,
    /// How many backends had it.
    pub backends: u32,
    /// When it was first taken: `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    data: u64,
}

/// What happened, in order. Requests are told by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another backend has the lanes.
    Life {
        /// Its process.
        pid: u32,
    },
    /// A request was taken for the first time.
    Request(usize),
    /// It was answered.
    Answer(usize),
}

/// A recording, without the data of its requests.
#[derive(Debug)]
pub struct Recording {
    file: File,
    /// What it is of.
    pub header: Header,
    /// Whether it goes on.
    pub state: State,
    /// All requests.
    pub requests: Vec<Recorded>,
    /// All that happened.
    pub events: Vec<Event>,
    /// Bytes at the end that are no whole entry.
    pub torn: u64,
}

/// Opens a recording that goes on, to write to it. Whatever is there by now, nothing else is
/// opened: its path may lead through a directory that is not ours.
pub fn reopen(path: &Path) -> Result<File, RecordingError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(RecordingError::Foreign);
    }
    header(&file)?;
    Ok(file)
}

/// The header of a recording, and where the next entry belongs.
pub(crate) fn header(file: &File) -> Result<(Header, u64), RecordingError> {
    let mut bytes = [0; ENTRIES as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(RecordingError::Foreign);
        }
        other => other?,
    }
    let header = Header::decode(&bytes).ok_or(RecordingError::Foreign)?;
    Ok((header, long(&bytes, END as usize)))
}

/// Whether a recording goes on.
pub fn state(file: &File) -> io::Result<State> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, STATE)?;
    Ok(State::decode(u64::from_le_bytes(word)))
}

impl Recording {
    /// Reads all of it but the data.
    pub fn read(file: File) -> Result<Self, RecordingError> {
        let (header, _) = header(&file)?;
        let state = state(&file)?;
        let mut recording =
            Self { file, header, state, requests: Vec::new(), events: Vec::new(), torn: 0 };
        let length = recording.file.metadata()?.len();
        let mut latest = HashMap::new();
        let mut at = ENTRIES;
        while let Some(entry) = recording.entry(at, length)? {
            let data = at + ENTRY as u64;
            at = data + u64::from(entry.data);
            recording.take(&entry, data, &mut latest);
        }
        recording.torn = length.saturating_sub(at);
        Ok(recording)
    }

    /// The entry there, if it is one and all of it is there.
    fn entry(&self, at: u64, length: u64) -> io::Result<Option<Entry>> {
        if at + ENTRY as u64 > length {
            return Ok(None);
        }
        let mut bytes = [0; ENTRY];
        self.file.read_exact_at(&mut bytes, at)?;
        let data = at + ENTRY as u64;
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

    /// `latest` has the latest request of each lane and cookie.
    fn take(&mut self, entry: &Entry, data: u64, latest: &mut HashMap<(u16, u64), usize>) {
        match entry.kind {
            Kind::Life { pid, .. } => self.events.push(Event::Life { pid }),
            Kind::Answer { cookie, error } => {
                let index = latest.get(&(entry.lane, cookie)).copied();
                if let Some(index) = index.filter(|&index| self.requests[index].error.is_none()) {
                    self.requests[index].error = Some(error);
                    self.events.push(Event::Answer(index));
                }
            }
            Kind::Request { request, before } => {
                let key = (entry.lane, request.cookie);
                if let Some(&index) = latest.get(&key).filter(|_| before) {
                    // Its predecessor may have died between writing an answer down and giving it.
                    self.requests[index].error = None;
                    self.requests[index].backends += 1;
                    return;
                }
                // Neither a request nor anything that could be sent as one.
                let is_kept = request.payload_len() == entry.data && entry.data <= MAX_PAYLOAD;
                if !is_kept || request.command == CommandType::DISC {
                    return;
                }
                latest.insert(key, self.requests.len());
                self.events.push(Event::Request(self.requests.len()));
                let (lane, time) = (entry.lane, entry.time);
                let error = None;
                self.requests.push(Recorded { lane, request, error, backends: 1, time, data });
            }
        }
    }

    /// The data of a write; empty for all else.
    pub fn data(&self, index: usize) -> io::Result<Vec<u8>> {
        let recorded = &self.requests[index];
        let mut data = vec![0; recorded.request.payload_len() as usize];
        self.file.read_exact_at(&mut data, recorded.data)?;
        Ok(data)
    }

    /// A request in words, like `write 4096+512 (number 3, lane 0)`.
    #[must_use]
    pub fn describe(&self, index: usize) -> String {
        let Recorded { lane, request, .. } = &self.requests[index];
        let fua = if request.flags.contains(CommandFlags::FUA) { " FUA" } else { "" };
        let range = match request.length {
            0 => String::new(),
            length => format!(" {}+{length}", request.offset),
        };
        format!("{}{fua}{range} (number {}, lane {lane})", request.command, index + 1)
    }

    /// How many backends there were.
    pub fn lives(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Life { .. })).count()
    }

    /// The requests that nobody is known to have answered.
    pub fn unanswered(&self) -> impl Iterator<Item = usize> {
        self.requests.iter().enumerate().filter(|(_, it)| it.error.is_none()).map(|(at, _)| at)
    }

    /// Writes a recording of only these requests, with their answers, into an empty file.
    pub fn excerpt(&self, file: &File, chosen: &[bool]) -> Result<(), RecordingError> {
        let header = Header { limit: u64::MAX, ..self.header.clone() };
        file.write_all_at(&header.encode(), 0)?;
        let mut writer = Writer::resume(file.try_clone()?)?;
        writer.life(1, 0, 0);
        for event in &self.events {
            match *event {
                Event::Request(index) if chosen[index] => {
                    let Recorded { lane, request, time, .. } = &self.requests[index];
                    writer.request((*lane).into(), request, &self.data(index)?, false, *time);
                }
                Event::Answer(index) if chosen[index] => {
                    let Recorded { lane, request, error, .. } = &self.requests[index];
                    let error = error.unwrap_or(NbdError::SUCCESS);
                    writer.answer((*lane).into(), request.cookie, error, 0);
                }
                _ => {}
            }
        }
        match writer.commit() {
            State::Failed(errno) => Err(io::Error::from_raw_os_error(errno).into()),
            _ => Ok(crate::writer::stop(file, State::Stopped)?),
        }
    }
}

#[cfg(test)]
mod tests;
