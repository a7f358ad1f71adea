//! Predicts whether a command that may block can be executed inline, by the receiving thread.
//!
//! A worker costs two switches of threads, which take as long as a flush of a fast disk. But the
//! receiving thread cannot receive while it executes. So this counts for each client how often no
//! request came while such a command was executed, as with a database that syncs its log. After a
//! streak, the next command runs inline.

use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The next command runs inline after this many in a row without another request.
const MIN_STREAK: u32 = 8;

/// The streak of one client.
#[derive(Debug, Default)]
pub(crate) struct InlinePredictor {
    streak: u32,
    is_pending: bool,
}

impl InlinePredictor {
    /// True if no request is likely to arrive while the only one in flight is executed.
    #[must_use]
    pub(crate) fn allows_inline(&self) -> bool {
        self.streak >= MIN_STREAK
    }

    /// The only command in flight was submitted to a worker.
    pub(crate) fn command_submitted(&mut self) {
        self.is_pending = true;
    }

    /// A request has arrived. `is_done` returns whether the submitted command was answered before.
    pub(crate) fn request_arrived(&mut self, is_done: impl FnOnce() -> bool) {
        if std::mem::take(&mut self.is_pending) {
            self.note(is_done());
        }
    }

    /// A command was executed inline and its reply is not sent yet: so bytes in the socket came
    /// while it was executed.
    pub(crate) fn executed_inline(&mut self, socket: BorrowedFd<'_>) {
        let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
        self.note(poll(&mut fds, PollTimeout::ZERO) == Ok(0));
    }

    fn note(&mut self, was_undisturbed: bool) {
        self.streak = if was_undisturbed { self.streak.saturating_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn one_request_during_a_command_ends_the_streak() {
        let mut inline_predictor = InlinePredictor::default();
        for _ in 0..MIN_STREAK {
            assert!(!inline_predictor.allows_inline());
            inline_predictor.command_submitted();
            inline_predictor.request_arrived(|| true);
            // Nothing was submitted since.
            inline_predictor.request_arrived(|| false);
        }
        assert!(inline_predictor.allows_inline());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        inline_predictor.executed_inline(ours.as_fd());
        assert!(inline_predictor.allows_inline());
        theirs.write_all(b"x").unwrap();
        inline_predictor.executed_inline(ours.as_fd());
        assert!(!inline_predictor.allows_inline());
        for _ in 0..MIN_STREAK {
            inline_predictor.command_submitted();
            inline_predictor.request_arrived(|| true);
        }
        assert!(inline_predictor.allows_inline());
        inline_predictor.command_submitted();
        inline_predictor.request_arrived(|| false);
        assert!(!inline_predictor.allows_inline());
    }
}
