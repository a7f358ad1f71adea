//! Writes whose data the kernel copies from the socket directly into the storage's memory.

use std::sync::atomic::Ordering::Relaxed;

use nbd_backend::{MappedBackend, MappedRange, reply_error};
use nbd_proto::{Command, NbdError};

use super::shared::{Connection, ConnectionError};
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
    /// The request: a write.
    command: Command,
    /// Where the rest of its data goes.
    range: MappedRange,
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
        let command = header.check(&self.rules, &[], self.replies.allocation).ok()?;
        let Command::Write { offset, length, fua: false } = command else {
            return None;
        };
        let mut range = self.export.backend().as_mapped()?.mapped_range_mut(offset, length)?;
        // Direct receiving needs no common memory, however long the client takes.
        recv_buffer.release_shared().ok()?;
        let data = &recv_buffer.bytes()[head..];
        // That does not block: a range to be received into exists only where writes do not.
        self.export.backend().write_at(data, offset, false).ok()?;
        range.consume(data.len());
        recv_buffer.consume(head + data.len());
        Some(DirectReceive { to: header.address(), command, range })
    }

    /// Receives the rest, and stages the reply.
    pub(super) fn direct_receive(
        &self,
        recv_buffer: &mut RecvBuffer,
        DirectReceive { to, command, mut range }: DirectReceive,
    ) -> Result<(), ConnectionError> {
        let head = RequestHeader::len(self.replies.style);
        let mut done = Ok(());
        while !range.is_empty() {
            if self.lock().send_buffer.is_hung_up() {
                return Err(self.unexpected_eof());
            }
            match self.receive_with_timeouts(recv_buffer, |recv_buffer| {
                recv_buffer.receive_into(&mut range, head)
            }) {
                Ok(0) => return Err(self.unexpected_eof()),
                Ok(_) => {}
                Err(ConnectionError::Receive(error)) if MappedRange::is_gone(&error) => {
                    // Write nothing after the page that is gone: the file would grow again and
                    // have a hole there.
                    tracing::warn!(
                        "{command}: the storage that its data was received into is gone: {error}"
                    );
                    done = Err(NbdError::EIO);
                    self.skip(recv_buffer, range.len() as u64)?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let mapped = self.export.backend().as_mapped();
        let unsaid = || Err(std::io::ErrorKind::Unsupported.into());
        let kept = mapped.map_or_else(unsaid, MappedBackend::check_received);
        let done = kept.map_err(|error| reply_error(&command, &error)).and(done);
        self.stage(&mut self.lock().send_buffer, to, done);
        Ok(())
    }
}
