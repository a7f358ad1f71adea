//! Whether a command that waits for the disk may be waited for where it was received.
//!
//! The way to a worker and back is two switches of threads, which a flush of a fast disk hardly
//! takes itself. But whoever carries out a command does not see what comes next. So this watches
//! clients: one that has often sent nothing while such a command was under way, like a database
//! with its log, will probably do so once more.

use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// After so many commands in a row beside which nothing came, the next one is waited for.
const CONVINCED: u32 = 8;

/// One client's recent past.
#[derive(Debug, Default)]
pub struct Lull {
    undisturbed: u32,
    is_watching: bool,
}

impl Lull {
    /// Whether nothing will probably come while a command is carried out that is the only one.
    #[must_use]
    pub fn is_likely(&self) -> bool {
        self.undisturbed >= CONVINCED
    }

    /// A command that is the only one was handed on.
    pub fn watch(&mut self) {
        self.is_watching = true;
    }

    /// Something has come. `is_done` tells whether what was handed on was answered before.
    pub fn arrived(&mut self, is_done: impl FnOnce() -> bool) {
        if std::mem::take(&mut self.is_watching) {
            self.note(is_done());
        }
    }

    /// A command was waited for, and its client does not know yet that it is done.
    pub fn waited(&mut self, socket: BorrowedFd<'_>) {
        let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
        self.note(poll(&mut fds, PollTimeout::ZERO) == Ok(0));
    }

    fn note(&mut self, was_undisturbed: bool) {
        self.undisturbed = if was_undisturbed { self.undisturbed.saturating_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn one_disturbance_costs_confidence() {
        let mut lull = Lull::default();
        for _ in 0..CONVINCED {
            assert!(!lull.is_likely());
            lull.watch();
            lull.arrived(|| true);
            // Nothing was handed on since.
            lull.arrived(|| false);
        }
        assert!(lull.is_likely());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        lull.waited(ours.as_fd());
        assert!(lull.is_likely());
        theirs.write_all(b"x").unwrap();
        lull.waited(ours.as_fd());
        assert!(!lull.is_likely());
        for _ in 0..CONVINCED {
            lull.watch();
            lull.arrived(|| true);
        }
        assert!(lull.is_likely());
        lull.watch();
        lull.arrived(|| false);
        assert!(!lull.is_likely());
    }
}
