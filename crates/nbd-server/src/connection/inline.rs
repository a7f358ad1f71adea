//! Requests that are executed where they are received.

use nbd_backend::{Span, inline, patiently};
use nbd_proto::{Command, NbdError};

use super::Connection;
use crate::outbox::Outbox;
use crate::reply::{Address, MOST_HEAD, is_zero};

/// Longest read that is tried where it was received: while it is copied, the others wait.
const QUICK: u32 = 1 << 20;
/// Shorter reads are copied: it costs as much to list where they lie …
const WORTH_A_SPAN: u32 = 4 << 10;
/// … and these, where a hole is told and not sent, as that has to be found out.
const WORTH_A_LOOK: u32 = 32 << 10;
/// How much of these is looked at, in bytes: the largest block that a backend may have.
const LOOK: u32 = 4096;
/// A shorter run of zeroes costs less than finding it out.
const WORTH_A_HOLE: u32 = 512;

impl Connection {
    /// Executes a command and stages its answer, if the command does not wait for anything, or if it
    /// may and we are `patient`. Tells whether that was needed.
    pub(super) fn inline(
        &self,
        outbox: &mut Outbox,
        to: Address,
        command: &Command,
        data: &[u8],
        patient: bool,
    ) -> Option<bool> {
        let Command::Read { length, .. } = *command else {
            let (done, has_waited) = self.attempt(command, data, &mut [], patient)?;
            self.stage(outbox, to, done);
            return Some(has_waited);
        };
        if length > QUICK {
            return None;
        }
        if length == 0 {
            self.stage(outbox, to, Ok(()));
            return Some(false);
        }
        if let Some(span) = self.span(outbox, command) {
            let mut head = [0; MOST_HEAD];
            let head = &mut head[..self.replies.data_head_len()];
            self.replies.data_head(to, length, head);
            outbox.stage(head);
            outbox.stage_span(span);
            return Some(false);
        }
        let head = self.replies.data_head_len();
        let room = outbox.room(head + length as usize);
        let (head_room, data_room) = room.split_at_mut(head);
        let (done, has_waited) = self.attempt(command, &[], data_room, patient)?;
        match done {
            Err(error) => self.stage(outbox, to, Err(error)),
            Ok(()) if self.is_hole(data_room) => {
                let mut reply = Vec::new();
                self.replies.hole(to, length, &mut reply);
                outbox.stage(&reply);
            }
            Ok(()) => {
                self.replies.data_head(to, length, head_room);
                outbox.advance(head + length as usize);
            }
        }
        Some(has_waited)
    }

    /// The data of a read, if it can be sent from where it lies.
    fn span(&self, outbox: &Outbox, command: &Command) -> Option<Span> {
        let Command::Read { offset, length } = *command else {
            return None;
        };
        if !self.is_worth_a_span(outbox, length) {
            return None;
        }
        let span = self.export.backend().span(offset, length)?;
        if self.replies.has_holes() {
            // Whoever looks at all of it might as well copy it.
            let mut beginning = [0; LOOK as usize];
            let look = Command::Read { offset, length: LOOK };
            let (done, _) = self.attempt(&look, &[], &mut beginning, false)?;
            if done.is_err() || is_zero(&beginning) {
                return None;
            }
        }
        Some(span)
    }

    /// Whether a read of this length is better sent from where it lies.
    pub(super) fn is_worth_a_span(&self, outbox: &Outbox, length: u32) -> bool {
        let worth = if self.replies.has_holes() { WORTH_A_LOOK } else { WORTH_A_SPAN };
        length >= worth && outbox.takes_spans()
    }

    /// What came of a command that was executed here, and whether it was waited for.
    pub(super) fn attempt(
        &self,
        command: &Command,
        data: &[u8],
        room: &mut [u8],
        patient: bool,
    ) -> Option<(Result<(), NbdError>, bool)> {
        let (backend, durability) = (self.export.backend(), self.export.durability());
        let done = inline(backend, durability, command, data, room, || ());
        if done.is_some() || !patient {
            return Some((done?, false));
        }
        Some((patiently(backend, durability, command, data, room, || ())?, true))
    }

    pub(super) fn is_hole(&self, data: &[u8]) -> bool {
        self.replies.has_holes() && data.len() >= WORTH_A_HOLE as usize && is_zero(data)
    }
}
