//! Writes whose data the kernel copies from the socket directly into the storage's memory.

use std::sync::atomic::Ordering::Relaxed;

use nbd_backend::Span;
use nbd_proto::{Command, NbdError};

use super::{Connection, ConnectionError};
use crate::recv_buffer::RecvBuffer;
use crate::reply::ReplyTarget;
use crate::request::RequestHeader;

/// If fewer bytes than this of a write's data are still to come, they go through the receive
/// buffer. This is well below the shortest write that gains from direct receiving, because the
/// beginning of its data may have come with earlier requests.
const MIN_DIRECT_RECEIVE: usize = 16 << 10;

/// A write whose data is being received into the storage's memory.
pub(super) struct DirectReceive {
    to: ReplyTarget,
    /// Where it ends on the export, in bytes; the span's offset is that of the storage below.
    end: u64,
    /// Where the rest of its data goes.
    span: Span,
}

impl Connection {
    /// Begins a write whose data has not come completely, if the rest can be received directly.
    /// Writes the data that has come, and consumes it with the header.
    pub(super) fn begin_direct_receive(
        &self,
        recv_buffer: &mut RecvBuffer,
        header: &RequestHeader,
        length: usize,
    ) -> Option<DirectReceive> {
        let head = RequestHeader::len(self.replies.style);
        if length - recv_buffer.bytes().len() < MIN_DIRECT_RECEIVE
            || !recv_buffer.supports_mapped()
            || self.is_stopping.load(Relaxed)
        {
            return None;
        }
        // An invalid request is refused later, when all of its payload has come.
        let Ok(Command::Write { offset, length, fua: false }) =
            header.check(&self.rules, &[], self.replies.allocation)
        else {
            return None;
        };
        let mut span = self.export.backend().span_mut(offset, length)?;
        // Direct receiving needs no common memory, however long the client takes.
        recv_buffer.release_shared().ok()?;
        let data = &recv_buffer.bytes()[head..];
        self.write(data, offset).ok()?;
        span.consume(data.len());
        recv_buffer.consume(head + data.len());
        Some(DirectReceive { to: header.address(), end: offset + u64::from(length), span })
    }

    /// Receives the rest, and stages the reply.
    pub(super) fn direct_receive(
        &self,
        recv_buffer: &mut RecvBuffer,
        DirectReceive { to, end, mut span }: DirectReceive,
    ) -> Result<(), ConnectionError> {
        let head = RequestHeader::len(self.replies.style);
        let mut done = Ok(());
        while !span.is_empty() {
            if self.lock().send_buffer.is_hung_up() {
                return Err(self.unexpected_eof());
            }
            match self.receive_with_timeouts(recv_buffer, |recv_buffer| {
                recv_buffer.receive_into(&mut span, head)
            }) {
                Ok(0) => return Err(self.unexpected_eof()),
                Ok(_) => {}
                Err(ConnectionError::Receive(error)) if Span::is_gone(&error) => {
                    // Write nothing after the page that is gone: the file would grow again and
                    // have a hole there.
                    tracing::warn!("{span:?} was to be received to and is gone: {error}");
                    done = Err(NbdError::EIO);
                    self.skip(recv_buffer, span.len() as u64)?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        // An empty write fails if the file was truncated meanwhile, so that the data is lost.
        let done = self.write(&[], end).and(done);
        self.stage(&mut self.lock().send_buffer, to, done);
        Ok(())
    }

    /// Writes a part of the data through the backend. Does not block: `span_mut` exists only where
    /// writes do not.
    fn write(&self, data: &[u8], offset: u64) -> Result<(), NbdError> {
        let command = Command::Write { offset, length: data.len() as u32, fua: false };
        self.execute_here(&command, data, &mut [], true)
            .map_or(Err(NbdError::EIO), |(done, _)| done)
    }
}
