//! The pipe that is stdout and stderr of a backend, as its reader sees it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nbd_log::Allowance;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid};

use super::text::{Splitter, Tail};
use crate::core::BackendId;

/// What one program may write to the log: bytes a second, and at once.
const RATE: u32 = 8 << 10;
const BURST: u32 = 256 << 10;
/// How long a pipe is left alone whose program writes more than it may. So such a program costs
/// the holder 33 reads a second, and waits for those.
const PAUSE: Duration = Duration::from_millis(30);
/// How often it is told how much was dropped.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);
/// All that a pipe holds, so that one read empties it.
pub(crate) const READ: usize = 64 << 10;

/// What a read has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Bytes,
    Nothing,
    /// No process has the other end any more.
    End,
}

/// Lines that were read and not written.
#[derive(Debug)]
struct Dropped {
    lines: u64,
    bytes: u64,
    since: Instant,
}

/// The reading end.
#[derive(Debug)]
pub(crate) struct LogPipe {
    file: File,
    /// Some process may have the writing end. Otherwise poll would tell of its absence for ever.
    pub(crate) has_writers: bool,
    /// Who was given it last.
    pub(crate) backend: Option<BackendId>,
    /// When that was, as a number.
    pub(crate) turn: u64,
    splitter: Splitter,
    tail: Tail,
    allowance: Allowance,
    dropped: Option<Dropped>,
    quiet_until: Option<Instant>,
}

impl LogPipe {
    /// A pipe whose writing end no program has.
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        drop(write);
        let pipe = Self::existing(read);
        Ok(Self { has_writers: false, ..pipe })
    }

    /// A pipe that perhaps has writers.
    pub(crate) fn existing(read: OwnedFd) -> Self {
        Self {
            file: read.into(),
            has_writers: true,
            backend: None,
            turn: 0,
            splitter: Splitter::default(),
            tail: Tail::default(),
            allowance: Allowance::new(RATE, BURST, Instant::now()),
            dropped: None,
            quiet_until: None,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The writing end for a new backend. It is opened anew, so that a program that makes it
    /// non-blocking does so for itself and its children only.
    pub(crate) fn open_for(
        &mut self,
        backend: BackendId,
        owner: Option<(Uid, Gid)>,
    ) -> io::Result<File> {
        if let Some((uid, gid)) = owner {
            // A program may want to open its own stderr once more.
            nix::unistd::fchown(&self.file, Some(uid), Some(gid))?;
        }
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let write = OpenOptions::new().write(true).open(path)?;
        let read = OwnedFd::from(self.file.try_clone()?);
        *self = Self { backend: Some(backend), turn: self.turn, ..Self::existing(read) };
        Ok(write)
    }

    /// Whether this is stderr of that process.
    pub(crate) fn is_stderr_of(&self, pid: i32) -> bool {
        let theirs = std::fs::metadata(format!("/proc/{pid}/fd/2"));
        let ours = self.file.metadata();
        theirs.is_ok_and(|theirs| ours.is_ok_and(|ours| ours.ino() == theirs.ino()))
    }

    pub(crate) fn is_to_be_read(&self, now: Instant) -> bool {
        self.has_writers && self.quiet_until.is_none_or(|until| now >= until)
    }

    /// When to look at it again, though nothing comes.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let quiet = self.quiet_until.filter(|_| self.has_writers);
        let note = self.dropped.as_ref().map(|dropped| dropped.since + NOTE_INTERVAL);
        [quiet, note].into_iter().flatten().min()
    }

    /// One read. What may be written to the log is added to `log`.
    pub(crate) fn read(&mut self, buffer: &mut [u8], log: &mut String, now: Instant) -> Found {
        self.quiet_until = None;
        match self.file.read(buffer) {
            Ok(0) => {
                self.end(log, now);
                self.has_writers = false;
                self.quiet_until = None;
                Found::End
            }
            Ok(count) => {
                self.take(&buffer[..count], log, now);
                Found::Bytes
            }
            Err(_) => Found::Nothing,
        }
    }

    fn take(&mut self, bytes: &[u8], log: &mut String, now: Instant) {
        let mut splitter = std::mem::take(&mut self.splitter);
        splitter.feed(bytes, |line| self.take_line(&line, log, now));
        self.splitter = splitter;
    }

    fn take_line(&mut self, line: &str, log: &mut String, now: Instant) {
        self.tail.push(line, now);
        if self.allowance.take(line.len() + 1, now) {
            log.push_str(line);
            log.push('\n');
            return;
        }
        self.quiet_until = Some(now + PAUSE);
        let dropped = self.dropped.get_or_insert(Dropped { lines: 0, bytes: 0, since: now });
        dropped.lines += 1;
        dropped.bytes += line.len() as u64 + 1;
    }

    /// Hands on the line that has no end yet, and says how much was dropped: there is no more, or
    /// nobody who reads it.
    pub(crate) fn end(&mut self, log: &mut String, now: Instant) {
        let mut splitter = std::mem::take(&mut self.splitter);
        splitter.end(&mut |line| self.take_line(&line, log, now));
        self.splitter = splitter;
        self.note_dropped(log);
    }

    /// Says how much was dropped, if it is time for that.
    pub(crate) fn tend(&mut self, log: &mut String, now: Instant) {
        let due = self.dropped.as_ref().is_some_and(|it| now >= it.since + NOTE_INTERVAL);
        if due {
            self.note_dropped(log);
        }
    }

    fn note_dropped(&mut self, log: &mut String) {
        let Some(Dropped { lines, bytes, .. }) = self.dropped.take() else {
            return;
        };
        let rate = RATE >> 10;
        log.push_str(&format!(
            "nbd-kernel-holder: {lines} lines of a backend are missing here: it wrote more than \
             {rate} KiB a second event=lines-dropped lines={lines} bytes={bytes}\n"
        ));
    }

    /// What was said last.
    pub(crate) fn tail(&self) -> &Tail {
        &self.tail
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Reads all that is there.
    fn read_all(pipe: &mut LogPipe, log: &mut String, now: Instant) -> Found {
        let mut buffer = vec![0; READ];
        loop {
            match pipe.read(&mut buffer, log, now) {
                Found::Bytes => {}
                other => return other,
            }
        }
    }

    #[test]
    fn a_pipe_has_an_end_and_can_be_used_again() {
        let mut pipe = LogPipe::new().unwrap();
        assert!(!pipe.has_writers);
        for (backend, words) in [(1, "one"), (2, "two")] {
            let mut write = pipe.open_for(BackendId(backend), None).unwrap();
            write.write_all(words.as_bytes()).unwrap();
            let mut log = String::new();
            assert_eq!(read_all(&mut pipe, &mut log, Instant::now()), Found::Nothing);
            drop(write);
            assert_eq!(read_all(&mut pipe, &mut log, Instant::now()), Found::End);
            assert_eq!(log, format!("{words}\n"));
            assert_eq!((pipe.backend, pipe.has_writers), (Some(BackendId(backend)), false));
            assert_eq!(pipe.tail().last(9, None), [words], "not those of another program");
        }
    }

    #[test]
    fn a_flood_is_limited_counted_and_leaves_the_last_words() {
        let now = Instant::now();
        let mut pipe = LogPipe::new().unwrap();
        let mut write = pipe.open_for(BackendId(1), None).unwrap();
        let (mut log, mut buffer) = (String::new(), vec![0; READ]);
        let line = format!("{}\n", "y".repeat(99));
        for _ in 0..20_000 {
            write.write_all(line.as_bytes()).unwrap();
            pipe.read(&mut buffer, &mut log, now);
        }
        assert!(!pipe.is_to_be_read(now) && pipe.is_to_be_read(now + PAUSE));
        assert_eq!(log.len(), BURST as usize / 100 * 100);
        log.clear();
        write.write_all(b"last words").unwrap();
        drop(write);
        read_all(&mut pipe, &mut log, now);
        let missing = 20_000 - BURST as usize / 100;
        assert!(log.contains(&format!("event=lines-dropped lines={missing} ")), "{log}");
        assert_eq!(pipe.tail().last(1, None), ["last words"]);
        assert_eq!(pipe.next_look(), None);
    }
}
