//! What a server process of our own says: passed on line by line, and the last line kept to tell
//! how it ended.

use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A longer line is passed on in pieces.
const MAX_LINE: u64 = 4096;

/// The last line, and whether it is the last for ever.
#[derive(Debug, Default)]
struct Last {
    line: String,
    is_over: bool,
}

/// The words of one process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words(Arc<(Mutex<Last>, Condvar)>);

impl Words {
    /// Passes on what comes, each line with a name before it. Not text: not worth a word.
    pub(crate) fn pass_on(&self, reader: PipeReader, name: String) -> io::Result<()> {
        let words = self.clone();
        let copy = move || words.copy(reader, &name);
        std::thread::Builder::new().name("server-words".into()).spawn(copy).map(drop)
    }

    fn copy(&self, reader: PipeReader, name: &str) {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        loop {
            let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes);
            if read.is_ok_and(|count| count > 0) {
                let line = String::from_utf8_lossy(&bytes);
                let line = line.trim_end();
                tracing::info!("{name}: {line}");
                if !line.is_empty() {
                    self.change(|last| line.clone_into(&mut last.line));
                }
                bytes.clear();
            } else {
                return self.change(|last| last.is_over = true);
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Last)) {
        let (last, changed) = &*self.0;
        change(&mut last.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    /// The last line of a process that has ended, which may still be on its way; empty if it has
    /// said nothing.
    pub(crate) fn last_of_dead(&self, limit: Duration) -> String {
        self.wait(limit).line.clone()
    }

    /// Waits until all have ended, or have closed their output, that could say something; `false` if the
    /// limit passes first.
    pub(crate) fn wait_for_end(&self, limit: Duration) -> bool {
        self.wait(limit).is_over
    }

    fn wait(&self, limit: Duration) -> MutexGuard<'_, Last> {
        let (last, changed) = &*self.0;
        let last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(last, limit, |last| !last.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_line_is_kept_and_none_is_endless() {
        let (reader, mut writer) = io::pipe().unwrap();
        let words = Words::default();
        words.pass_on(reader, "server".into()).unwrap();
        writer.write_all(&vec![b'x'; 1 << 20]).unwrap();
        writer.write_all(b"\nthe last words\n\n").unwrap();
        drop(writer);
        assert_eq!(words.last_of_dead(Duration::from_secs(60)), "the last words");
    }
}
