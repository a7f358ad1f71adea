//! A connection's requests as the dispatcher sees them, and their replies.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbd_backend::{
    Durability, MappedRange, ReceivedRequest, ReplySink, Room, Task, execute_inline,
};
use nbd_proto::{Command, NbdError};

use super::next_action::NextAction;
use super::shared::Connection;
use super::task::{self, NetworkTask, TaskGrant};
use crate::memory_budget::Grant;
use crate::recv_buffer::{Payload, RecvBuffer};
use crate::reply::{MAX_DATA_HEADER_LEN, is_zero};
use crate::request::{RefusalReason, RequestHeader};
use crate::send_buffer::SendBuffer;

/// Bytes of data of reads that a connection may have pending without a grant of common memory.
const MAX_UNGRANTED_BYTES: u64 = 1 << 20;
/// Longest read that the receiving thread executes, in bytes: later requests wait while its data is
/// copied.
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

/// A request in the receive buffer.
pub(super) struct NetworkRequest<'a> {
    pub(super) connection: &'a Arc<Connection>,
    pub(super) recv_buffer: &'a RecvBuffer,
    pub(super) header: RequestHeader,
    /// Where its payload lies in the receive buffer.
    pub(super) payload: Range<usize>,
    /// Memory for its data, if it had to wait for that.
    pub(super) grant: Option<Grant>,
}

impl ReceivedRequest for NetworkRequest<'_> {
    fn payload(&self) -> &[u8] {
        &self.recv_buffer.bytes()[self.payload.clone()]
    }

    fn durability(&self) -> &dyn Durability {
        self.connection.export.durability()
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }
}

/// The replies of a batch of requests, while the connection's lock is held.
pub(super) struct ConnectionSink<'a> {
    pub(super) connection: &'a Arc<Connection>,
    pub(super) send_buffer: &'a mut SendBuffer,
}

impl<'a> ReplySink for ConnectionSink<'a> {
    type Request = NetworkRequest<'a>;
    type Refusal = RefusalReason;
    type Blocked = NextAction;

    fn check(&self, request: &NetworkRequest<'a>) -> Result<Command, RefusalReason> {
        let Connection { is_stopping, rules, replies, .. } = &**self.connection;
        if is_stopping.load(Ordering::Relaxed) {
            return Err(RefusalReason::Stopping);
        }
        request.header.check(rules, request.payload(), replies.allocation)
    }

    fn refuse(&mut self, request: NetworkRequest<'a>, refusal: RefusalReason) {
        self.send_buffer.log_refusal_once(&refusal);
        let (to, mut reply) = (request.header.address(), Vec::new());
        self.connection.replies.error(to, refusal.error(), &refusal.to_string(), &mut reply);
        self.send_buffer.stage(&reply);
    }

    fn room(&mut self, request: &NetworkRequest<'a>, command: &Command) -> Room<'_> {
        if self.send_buffer.is_closed() && task::is_read_only(command) {
            // The client reads no reply any more.
            return Room::Answered;
        }
        let Command::Read { length, .. } = *command else {
            return Room::Inline(&mut []);
        };
        let (replies, to) = (self.connection.replies, request.header.address());
        if length > MAX_INLINE_READ {
            return Room::Queue;
        }
        if length == 0 {
            self.connection.stage(self.send_buffer, to, Ok(()));
            return Room::Answered;
        }
        if let Some(range) = self.mapped_range(request, command) {
            let mut head = [0; MAX_DATA_HEADER_LEN];
            let head = &mut head[..replies.data_head_len()];
            replies.data_head(to, length, head);
            self.send_buffer.stage(head);
            self.send_buffer.stage_mapped(range);
            return Room::Answered;
        }
        let head = replies.data_head_len();
        Room::Inline(&mut self.send_buffer.room(head + length as usize)[head..])
    }

    fn complete(
        &mut self,
        request: NetworkRequest<'a>,
        command: &Command,
        done: Result<(), NbdError>,
    ) {
        let (connection, to) = (self.connection, request.header.address());
        let (Ok(()), Command::Read { length, .. }) = (done, *command) else {
            return connection.stage(self.send_buffer, to, done);
        };
        let replies = connection.replies;
        let head = replies.data_head_len();
        // The data lies there, and nothing was staged since.
        let (head_room, data) = self.send_buffer.room(head + length as usize).split_at_mut(head);
        if connection.is_hole(data) {
            let mut reply = Vec::new();
            replies.hole(to, length, &mut reply);
            self.send_buffer.stage(&reply);
        } else {
            replies.data_head(to, length, head_room);
            self.send_buffer.advance(head + length as usize);
        }
    }

    fn queue(
        &mut self,
        request: NetworkRequest<'a>,
        command: Command,
    ) -> Result<Box<dyn Task>, NextAction> {
        let NetworkRequest { recv_buffer, header, payload, grant, .. } = request;
        let grant = self.grant(&command, grant)?;
        self.send_buffer.outstanding += 1;
        self.send_buffer.outstanding_bytes += header.data_len();
        let payload =
            if payload.is_empty() { Payload::default() } else { recv_buffer.share(payload) };
        let (connection, to) = (Arc::clone(self.connection), header.address());
        // A backend that executes tasks itself begins them at once, and does not say so.
        let grant = match grant {
            Some(grant) if connection.export.backend().as_async().is_none() => {
                TaskGrant::queued(self.send_buffer.queued_grants.add(grant))
            }
            grant => TaskGrant::begun(grant),
        };
        Ok(Box::new(NetworkTask { connection, to, command, payload, grant }))
    }
}

impl ConnectionSink<'_> {
    /// A grant of memory for the data of a read, if it needs one. A write needs none: its data lies
    /// in the receive buffer, which has a grant of its own.
    fn grant(&self, command: &Command, grant: Option<Grant>) -> Result<Option<Grant>, NextAction> {
        let Command::Read { length, .. } = *command else {
            return Ok(None);
        };
        let length = u64::from(length);
        if grant.is_some() || self.send_buffer.pending() + length <= MAX_UNGRANTED_BYTES {
            return Ok(grant);
        }
        let memory = &self.connection.memory;
        memory.try_take(length).map(Some).ok_or(NextAction::WaitForMemory(length))
    }

    /// The mapped memory of a read's data, if sending from there is better than copying.
    fn mapped_range(&self, request: &NetworkRequest<'_>, command: &Command) -> Option<MappedRange> {
        let Command::Read { offset, length } = *command else {
            return None;
        };
        if !self.connection.prefers_mapped(self.send_buffer, length) {
            return None;
        }
        let backend = self.connection.export.backend();
        let range = backend.as_mapped()?.mapped_range(offset, length)?;
        if self.connection.replies.has_holes() {
            // Only the beginning: checking all of it would cost as much as copying it.
            let mut beginning = [0; ZERO_PROBE_LEN as usize];
            let probe = Command::Read { offset, length: ZERO_PROBE_LEN };
            let done =
                execute_inline(backend, backend.as_inline()?, request, &probe, &mut beginning)?;
            if done.is_err() || is_zero(&beginning) {
                return None;
            }
        }
        Some(range)
    }
}

impl Connection {
    /// Whether a read of this length is better sent from mapped memory than copied.
    pub(super) fn prefers_mapped(&self, send_buffer: &SendBuffer, length: u32) -> bool {
        let min =
            if self.replies.has_holes() { MIN_MAPPED_READ_WITH_HOLES } else { MIN_MAPPED_READ };
        length >= min && send_buffer.supports_mapped()
    }

    pub(super) fn is_hole(&self, data: &[u8]) -> bool {
        self.replies.has_holes() && data.len() >= MIN_HOLE_LEN as usize && is_zero(data)
    }
}
