//! A backend's end of a recording: what was written before a request is executed is there, whatever
//! the request does to the backend.
//!
//! What is written goes to the page cache by a system call, so it outlives the process, though not
//! the machine. `end` in the header follows each write: entries behind it are those of a backend
//! that died in between. It had not executed any of them, and its successor writes over them.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use nbd_control::backend::ExportInfo;
use nbd_proto::{NbdError, Request};

use crate::format::{END, ENTRIES, Entry, Header, Kind, STATE, State};
use crate::recording::{RecordingError, header, state};

/// So many bytes are collected before they are written.
const COLLECTED: usize = 1 << 20;

/// Begins a recording in an empty file.
pub fn begin(
    file: &File,
    device: &str,
    export: ExportInfo,
    lanes: u32,
    limit: u64,
) -> io::Result<Header> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let header = Header {
        // Random keys are made anew for each of these.
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

/// Ends a recording. Its writer notices before it writes anything more.
pub fn stop(file: &File, state: State) -> io::Result<()> {
    file.write_all_at(&state.encode().to_le_bytes(), STATE)
}

/// Appends to a recording.
#[derive(Debug)]
pub struct Writer {
    file: File,
    id: u64,
    limit: u64,
    end: u64,
    state: State,
    collected: Vec<u8>,
}

impl Writer {
    /// Goes on with a recording. There is one writer at a time: the backend that has the lanes.
    pub fn resume(file: File) -> Result<Self, RecordingError> {
        let (header, end) = header(&file)?;
        let state = state(&file)?;
        let length = file.metadata()?.len();
        let writer = Self {
            id: header.id,
            limit: header.limit,
            end: end.clamp(ENTRIES, length.max(ENTRIES)),
            file,
            state,
            collected: Vec::new(),
        };
        if state == State::Going {
            writer.file.set_len(writer.end)?;
        }
        Ok(writer)
    }

    /// Whether what is written still goes anywhere; and if not, why.
    pub fn state(&self) -> State {
        self.state
    }

    /// A backend has the lanes.
    pub fn life(&mut self, generation: u64, pid: u32, time: u64) {
        self.add(0, Kind::Life { generation, pid }, time, &[]);
    }

    /// A request was taken, by a predecessor `before` perhaps.
    pub fn request(
        &mut self,
        lane: u32,
        request: &Request,
        payload: &[u8],
        before: bool,
        time: u64,
    ) {
        self.add(lane, Kind::Request { request: *request, before }, time, payload);
    }

    /// A request is about to be answered.
    pub fn answer(&mut self, lane: u32, cookie: u64, error: NbdError, time: u64) {
        self.add(lane, Kind::Answer { cookie, error }, time, &[]);
    }

    fn add(&mut self, lane: u32, kind: Kind, time: u64, data: &[u8]) {
        if self.state != State::Going {
            return;
        }
        let checksum = crc32fast::hash(data);
        let entry = Entry { kind, lane: lane as u16, time, data: data.len() as u32, checksum };
        self.collected.extend_from_slice(&entry.encode(self.id));
        self.collected.extend_from_slice(data);
        if self.collected.len() >= COLLECTED {
            self.commit();
        }
    }

    /// Writes what was added. When this returns it is there, or the recording is over.
    pub fn commit(&mut self) -> State {
        if self.state == State::Going && !self.collected.is_empty() {
            self.state = self.write().unwrap_or_else(|error| {
                // Rather nothing of it than a part: a full disk may have taken some.
                let _ = self.file.set_len(self.end);
                State::Failed(error.raw_os_error().unwrap_or(0))
            });
            if matches!(self.state, State::Full | State::Failed(_)) {
                let _ = stop(&self.file, self.state);
            }
        }
        self.collected.clear();
        self.collected.shrink_to(COLLECTED);
        self.state
    }

    fn write(&mut self) -> io::Result<State> {
        let state = state(&self.file)?;
        if state != State::Going {
            return Ok(state);
        }
        let end = self.end + self.collected.len() as u64;
        if end > self.limit {
            return Ok(State::Full);
        }
        self.file.write_all_at(&self.collected, self.end)?;
        self.file.write_all_at(&end.to_le_bytes(), END)?;
        self.end = end;
        Ok(state)
    }
}
