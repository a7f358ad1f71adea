//! Reads what backends write, and keeps a bounded part of it: in the log of the device, and the
//! last lines of each program in memory.
//!
//! Each program has a pipe of its own out of a few that are made at attach. Their reading ends are
//! kept by the sitter, too, so that no pipe breaks when the holder dies, and the next holder reads
//! on. Writing ends are with the programs only: a pipe that has none is free for the next one.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid};

use super::file::LogFile;
use super::pipe::{Found, LogPipe, READ};
use crate::core::BackendId;
use crate::kernel::sitter::{LOG_PIPES, MAX_LOG_PIPES};
use crate::system::Process;

/// How many reads empty a pipe, unless more is being written meanwhile.
const MAX_DRAIN: usize = 4;
/// So many lines tell how a program ended …
const LAST_LINES: usize = 3;
/// … if they are not older than this. A backend may have been silent for weeks.
const RECENT: Duration = Duration::from_secs(10);

/// The pipes of a device's programs, and its log.
#[derive(Debug)]
pub(crate) struct LogSink {
    pipes: Vec<LogPipe>,
    file: LogFile,
    buffer: Vec<u8>,
    turn: u64,
}

impl LogSink {
    pub(crate) fn new(log: PathBuf) -> io::Result<Self> {
        let pipes = (0..MAX_LOG_PIPES).map(|_| LogPipe::new()).collect::<io::Result<_>>()?;
        Ok(Self { pipes, file: LogFile::new(log), buffer: Vec::new(), turn: 0 })
    }

    /// Reads on where another holder has ended. A sitter of an older build has no pipes; then those
    /// that were made anew are used, and break if this holder dies.
    pub(crate) fn take_from(&mut self, sitter: &Process) {
        let numbers = (LOG_PIPES..).take(MAX_LOG_PIPES);
        let copies: Result<Vec<_>, _> =
            numbers.map(|number| sitter.copy_descriptor(number)).collect();
        if let Ok(copies) = copies {
            self.pipes = copies.into_iter().map(LogPipe::existing).collect();
        }
    }

    /// From now on what the holder writes to stderr goes to the log.
    pub(crate) fn take_stderr(&mut self) {
        self.file.take_stderr();
    }

    /// Stdout and stderr for a new program. If daemons of former programs keep all pipes, one is
    /// shared, with one that is not `busy` if possible.
    pub(crate) fn open_for(
        &mut self,
        backend: BackendId,
        owner: Option<(Uid, Gid)>,
        busy: impl Fn(BackendId) -> bool,
    ) -> io::Result<std::fs::File> {
        self.turn += 1;
        let rank = |pipe: &LogPipe| (pipe.has_writers, pipe.backend.is_some_and(&busy), pipe.turn);
        let pipe = self.pipes.iter_mut().min_by_key(|pipe| rank(pipe));
        let pipe = pipe.ok_or(io::Error::other("there are no pipes"))?;
        pipe.turn = self.turn;
        pipe.open_for(backend, owner)
    }

    /// Says which backend a program is that a former holder has started.
    pub(crate) fn attribute(&mut self, backend: BackendId, pid: i32) {
        if let Some(pipe) = self.pipes.iter_mut().find(|pipe| pipe.is_stderr_of(pid)) {
            pipe.backend = Some(backend);
        }
    }

    /// The reading ends, for the sitter.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.pipes.iter().map(LogPipe::fd).collect()
    }

    /// Those to wait for, with their numbers.
    pub(crate) fn to_be_read(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let now = Instant::now();
        let pipes = self.pipes.iter().enumerate();
        pipes.filter(move |(_, pipe)| pipe.is_to_be_read(now)).map(|(n, pipe)| (n, pipe.fd()))
    }

    /// When there is something to do, though nothing comes.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.pipes.iter().filter_map(LogPipe::next_look).min()
    }

    /// One bounded read of a pipe.
    pub(crate) fn read(&mut self, number: usize) -> Option<Found> {
        // Only who has something to say costs memory.
        self.buffer.resize(READ, 0);
        let pipe = self.pipes.get_mut(number)?;
        let mut log = String::new();
        let found = pipe.read(&mut self.buffer, &mut log, Instant::now());
        self.file.append(&log);
        Some(found)
    }

    /// What has to be done now and then.
    pub(crate) fn tend(&mut self) {
        let (now, mut log) = (Instant::now(), String::new());
        self.pipes.iter_mut().for_each(|pipe| pipe.tend(&mut log, now));
        self.file.append(&log);
        self.file.keep_bounded();
    }

    /// Reads all that a backend has written up to now.
    pub(crate) fn drain(&mut self, backend: BackendId) {
        let found =
            self.pipes.iter().position(|pipe| pipe.backend == Some(backend) && pipe.has_writers);
        let Some(number) = found else {
            return;
        };
        for _ in 0..MAX_DRAIN {
            if self.read(number) != Some(Found::Bytes) {
                return;
            }
        }
    }

    /// The same for all, and with lines that have no end: this process is about to end.
    pub(crate) fn drain_all(&mut self) {
        for number in 0..self.pipes.len() {
            for _ in 0..MAX_DRAIN {
                if !self.pipes[number].has_writers || self.read(number) != Some(Found::Bytes) {
                    break;
                }
            }
        }
        let (now, mut log) = (Instant::now(), String::new());
        self.pipes.iter_mut().for_each(|pipe| pipe.end(&mut log, now));
        self.file.append(&log);
    }

    /// The lines that a program has written just now, on one line.
    pub(crate) fn last_words(&mut self, backend: BackendId) -> Option<String> {
        self.drain(backend);
        let pipe = self.pipes.iter().find(|pipe| pipe.backend == Some(backend))?;
        let since = Instant::now().checked_sub(RECENT);
        let lines = pipe.tail().last(LAST_LINES, since);
        (!lines.is_empty()).then(|| lines.join(" | "))
    }

    /// The last lines of all programs whose pipes are not used for others yet, oldest program
    /// first.
    pub(crate) fn all_words(&mut self) -> Vec<String> {
        for number in 0..self.pipes.len() {
            if self.pipes[number].has_writers {
                self.read(number);
            }
        }
        let mut pipes: Vec<_> = self.pipes.iter().filter(|pipe| pipe.backend.is_some()).collect();
        pipes.sort_by_key(|pipe| pipe.turn);
        pipes.iter().flat_map(|pipe| pipe.tail().lines()).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn sink() -> (PathBuf, LogSink) {
        let name = format!("nbd-log-sink-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        (path.clone(), LogSink::new(path).unwrap())
    }

    #[test]
    fn words_are_those_of_the_program_that_said_them() {
        let (path, mut sink) = sink();
        let mut first = sink.open_for(BackendId(1), None, |_| false).unwrap();
        let mut second = sink.open_for(BackendId(2), None, |_| false).unwrap();
        second.write_all(b"of the second\n").unwrap();
        first.write_all(b"a\nb\nc\nof the first, without an end").unwrap();
        drop(first);
        let third = sink.open_for(BackendId(3), None, |_| false).unwrap();
        assert_eq!(sink.last_words(BackendId(1)).unwrap(), "b | c | of the first, without an end");
        assert_eq!(sink.last_words(BackendId(2)).unwrap(), "of the second");
        assert_eq!(sink.last_words(BackendId(3)), None);
        assert_eq!(sink.last_words(BackendId(4)), None);
        drop((second, third));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn more_programs_than_pipes_share_and_those_that_serve_keep_theirs() {
        let (path, mut sink) = sink();
        let mut ends = Vec::new();
        for backend in 1..=MAX_LOG_PIPES as u64 + 3 {
            let mut end =
                sink.open_for(BackendId(backend), None, |backend| backend == BackendId(1)).unwrap();
            end.write_all(format!("words of {backend}\n").as_bytes()).unwrap();
            ends.push(end);
        }
        assert_eq!(sink.last_words(BackendId(1)).unwrap(), "words of 1");
        let count = sink.to_be_read().count();
        assert_eq!(count, MAX_LOG_PIPES);
        std::fs::remove_file(path).unwrap();
    }
}
