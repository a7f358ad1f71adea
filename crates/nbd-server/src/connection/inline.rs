//! Requests that the receiving thread executes itself.

use nbd_backend::{MappedRange, execute_blocking, execute_inline};
use nbd_proto::{Command, NbdError};

use super::Connection;
use crate::reply::{MAX_DATA_HEADER_LEN, ReplyTarget, is_zero};
use crate::send_buffer::SendBuffer;

/// Longest read that is executed here, in bytes: later requests wait while its data is copied.
const MAX_INLINE_READ: u32 = 1 << 20;
/// Shorter reads are copied, because a part of its own in sendmsg(2) costs as much ...
const MIN_MAPPED_READ: u32 = 4 << 10;
/// ... and below this length where zeroes are sent as a hole, because the check for zeroes
/// needs a copy.
const MIN_MAPPED_READ_WITH_HOLES: u32 = 32 << 10;
/// Bytes at the beginning of a longer read that are checked for zeroes: the largest block size of a
/// backend.
const ZERO_PROBE_LEN: u32 = 4096;
/// Shorter reads, in bytes, are sent as data: the check costs more than sending zeroes.
const MIN_HOLE_LEN: u32 = 512;

impl Connection {
    /// Executes a command and stages its reply, if the command does not block or `may_block` is
    /// set. Returns whether it may have blocked; `None` if it was not executed.
    pub(super) fn inline(
        &self,
        send_buffer: &mut SendBuffer,
        to: ReplyTarget,
        command: &Command,
        data: &[u8],
        may_block: bool,
    ) -> Option<bool> {
        let Command::Read { length, .. } = *command else {
            let (done, has_waited) = self.execute_here(command, data, &mut [], may_block)?;
            self.stage(send_buffer, to, done);
            return Some(has_waited);
        };
        if length > MAX_INLINE_READ {
            return None;
        }
        if length == 0 {
            self.stage(send_buffer, to, Ok(()));
            return Some(false);
        }
        if let Some(range) = self.mapped_range(send_buffer, command) {
            let mut head = [0; MAX_DATA_HEADER_LEN];
            let head = &mut head[..self.replies.data_head_len()];
            self.replies.data_head(to, length, head);
            send_buffer.stage(head);
            send_buffer.stage_mapped(range);
            return Some(false);
        }
        let head = self.replies.data_head_len();
        let room = send_buffer.room(head + length as usize);
        let (head_room, data_room) = room.split_at_mut(head);
        let (done, has_waited) = self.execute_here(command, &[], data_room, may_block)?;
        match done {
            Err(error) => self.stage(send_buffer, to, Err(error)),
            Ok(()) if self.is_hole(data_room) => {
                let mut reply = Vec::new();
                self.replies.hole(to, length, &mut reply);
                send_buffer.stage(&reply);
            }
            Ok(()) => {
                self.replies.data_head(to, length, head_room);
                send_buffer.advance(head + length as usize);
            }
        }
        Some(has_waited)
    }

    /// The mapped memory of a read's data, if sending from there is better than copying.
    fn mapped_range(&self, send_buffer: &SendBuffer, command: &Command) -> Option<MappedRange> {
        let Command::Read { offset, length } = *command else {
            return None;
        };
        if !self.prefers_mapped(send_buffer, length) {
            return None;
        }
        let range = self.export.backend().as_mapped()?.mapped_range(offset, length)?;
        if self.replies.has_holes() {
            // Only the beginning: checking all of it would cost as much as copying it.
            let mut beginning = [0; ZERO_PROBE_LEN as usize];
            let probe = Command::Read { offset, length: ZERO_PROBE_LEN };
            let (done, _) = self.execute_here(&probe, &[], &mut beginning, false)?;
            if done.is_err() || is_zero(&beginning) {
                return None;
            }
        }
        Some(range)
    }

    /// Whether a read of this length is better sent from mapped memory than copied.
    pub(super) fn prefers_mapped(&self, send_buffer: &SendBuffer, length: u32) -> bool {
        let min =
            if self.replies.has_holes() { MIN_MAPPED_READ_WITH_HOLES } else { MIN_MAPPED_READ };
        length >= min && send_buffer.supports_mapped()
    }

    /// The result of a command that was executed here, and whether it may have blocked; `None` if
    /// it was not executed.
    pub(super) fn execute_here(
        &self,
        command: &Command,
        data: &[u8],
        room: &mut [u8],
        may_block: bool,
    ) -> Option<(Result<(), NbdError>, bool)> {
        let (backend, durability) = (self.export.backend(), self.export.durability());
        let done = execute_inline(backend, durability, command, data, room, || ());
        if done.is_some() || !may_block {
            return Some((done?, false));
        }
        Some((execute_blocking(backend, durability, command, data, room, || ())?, true))
    }

    pub(super) fn is_hole(&self, data: &[u8]) -> bool {
        self.replies.has_holes() && data.len() >= MIN_HOLE_LEN as usize && is_zero(data)
    }
}
