//! The log of a device: one file of bounded size, and an older one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// A log of this size becomes the older one, whose place it takes.
pub(crate) const MAX_LOG: u64 = 1 << 20;

/// Where lines of backends go, and, in a daemon, those of the holder.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    /// The holder's stderr is this file, too.
    is_stderr: bool,
    /// Lines that could not be written since the last one that could, and why.
    lost: u64,
    why: String,
}

impl LogFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        let mut log = Self { path, file: None, is_stderr: false, lost: 0, why: String::new() };
        // A daemon that has become this program had it like that.
        if log.is_stderr_already() {
            log.take_stderr();
        }
        log
    }

    fn is_stderr_already(&self) -> bool {
        let stderr = nix::sys::stat::fstat(io::stderr());
        let place = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let ours = fs::metadata(&self.path).map(place);
        stderr.is_ok_and(|stderr| ours.is_ok_and(|ours| ours == (stderr.st_dev, stderr.st_ino)))
    }

    /// From now on what the holder writes to stderr goes here.
    pub(crate) fn take_stderr(&mut self) {
        self.is_stderr = true;
        // If this fails stderr stays what it was, and appending tries again.
        let _ = self.open();
    }

    /// Writes lines, each with its end, or counts them as lost. `/run` may be full.
    pub(crate) fn append(&mut self, lines: &str) {
        if lines.is_empty() {
            return;
        }
        let note = match self.lost {
            0 => String::new(),
            lost => format!("nbd-kernel-holder: {lost} lines are missing here: {}\n", self.why),
        };
        match self.try_append(&note, lines) {
            Ok(()) => self.lost = 0,
            Err(error) => {
                self.lost += lines.lines().count() as u64;
                self.why = error.to_string();
            }
        }
    }

    fn try_append(&mut self, note: &str, lines: &str) -> io::Result<()> {
        self.keep_bounded();
        let file = match &mut self.file {
            Some(file) => file,
            None => self.open()?,
        };
        let before = file.metadata()?.len();
        let text = format!("{note}{lines}");
        let written = file.write_all(text.as_bytes());
        if written.is_err() {
            // Half a line would be the beginning of the next one.
            file.set_len(before)?;
        }
        written
    }

    /// Puts a log aside that is full. To be called now and then if stderr goes here, too.
    pub(crate) fn keep_bounded(&mut self) {
        let length = self.file.as_ref().and_then(|file| file.metadata().ok());
        if length.is_none_or(|meta| meta.len() < MAX_LOG) {
            return;
        }
        let renamed = fs::rename(&self.path, self.path.with_extension("old"));
        if renamed.and_then(|()| self.open().map(drop)).is_err()
            && let Some(file) = &self.file
        {
            // No room for two, or the folder is gone: the bound goes before what is in it.
            let _ = file.set_len(0);
        }
    }

    fn open(&mut self) -> io::Result<&mut File> {
        let mut options = OpenOptions::new();
        // The words of backends are for root only, and not for the group that may look.
        let file = options.create(true).append(true).mode(0o600).open(&self.path)?;
        if self.is_stderr {
            nix::unistd::dup2_stderr(file.as_fd())?;
        }
        Ok(self.file.insert(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (PathBuf, LogFile) {
        let name = format!("nbd-log-file-{}-{:?}", std::process::id(), std::thread::current().id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("log");
        (path.clone(), LogFile::new(path))
    }

    #[test]
    fn a_log_is_never_larger_than_two_files_of_a_mebibyte() {
        let (path, mut log) = file();
        let line = "x".repeat(1000) + "\n";
        for _ in 0..5000 {
            log.append(&line);
        }
        let sizes = [&path, &path.with_extension("old")].map(|it| it.metadata().unwrap().len());
        assert!(sizes.iter().all(|size| (1..MAX_LOG + 1001).contains(size)), "{sizes:?}");
        assert!(sizes[1] >= MAX_LOG);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_told() {
        let (path, mut log) = file();
        let folder = path.parent().unwrap();
        fs::remove_dir(folder).unwrap();
        log.append("one\ntwo\n");
        fs::create_dir(folder).unwrap();
        log.append("three\n");
        log.append("four\n");
        let text = fs::read_to_string(&path).unwrap();
        let (note, lines) = text.split_once('\n').unwrap();
        assert!(note.starts_with("nbd-kernel-holder: 2 lines are missing here: No such file"));
        assert_eq!(lines, "three\nfour\n");
        fs::remove_dir_all(folder).unwrap();
    }
}
