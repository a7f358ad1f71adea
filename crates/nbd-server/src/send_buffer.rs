//! Replies that are not sent yet: staged together, sent together, without waiting for the client.

mod queued_grants;
mod staged;

use std::io::{self, IoSlice};
use std::time::Duration;

use nbd_backend::MappedRange;
use nbd_net::stream::Sender;

use crate::limits::Lag;
use crate::memory_budget::Grant;
use crate::request::RefusalReason;
use queued_grants::QueuedGrants;
use staged::Staged;

/// Staged bytes that are sent before the rest of a batch is executed, so that the client can
/// continue meanwhile.
pub(crate) const SEND_THRESHOLD: usize = 256 << 10;

/// The sending end of a connection. Its users hold the connection's lock.
pub(crate) struct SendBuffer {
    sender: Sender,
    staged: Staged,
    /// Grants for data among the staged bytes.
    held_grants: Vec<Grant>,
    /// Grants for reads that no worker has begun.
    pub(crate) queued_grants: QueuedGrants,
    /// How slowly the client reads, since the buffer was last empty.
    lag: Lag,
    /// The receive buffer holds common memory.
    pub(crate) recv_holds_memory: bool,
    /// Requests that workers or the backend have.
    pub(crate) outstanding: usize,
    /// Bytes of data of these requests.
    pub(crate) outstanding_bytes: u64,
    /// A thread waits for the client to read, and sends when the socket has room. No other thread
    /// may send meanwhile: the bytes would get out of order.
    pub(crate) is_draining: bool,
    /// The receiving thread receives a write's data directly into the storage's memory.
    pub(crate) is_receiving_directly: bool,
    /// The client has disconnected or was disconnected: nothing more is sent.
    is_closed: bool,
    /// The server has disconnected the client: none of its requests is begun any more either.
    is_hung_up: bool,
    /// A request was refused and logged. Later ones are not logged.
    has_refused: bool,
}

impl SendBuffer {
    pub(crate) fn new(sender: Sender) -> Self {
        Self {
            sender,
            staged: Staged::new(),
            held_grants: Vec::new(),
            queued_grants: QueuedGrants::default(),
            lag: Lag::default(),
            recv_holds_memory: false,
            outstanding: 0,
            outstanding_bytes: 0,
            is_draining: false,
            is_receiving_directly: false,
            is_closed: false,
            is_hung_up: false,
            has_refused: false,
        }
    }

    /// Bytes to send.
    pub(crate) fn unsent(&self) -> usize {
        self.staged.len()
    }

    /// Room for the next `length` bytes; [`advance`](Self::advance) stages them.
    pub(crate) fn room(&mut self, length: usize) -> &mut [u8] {
        self.staged.room(length)
    }

    /// Stages bytes that were put into [`room`](Self::room).
    pub(crate) fn advance(&mut self, length: usize) {
        self.staged.advance(length);
    }

    pub(crate) fn stage(&mut self, bytes: &[u8]) {
        self.staged.stage(bytes);
    }

    /// Stages data in mapped memory, if [that is possible](Self::supports_mapped).
    pub(crate) fn stage_mapped(&mut self, range: MappedRange) {
        self.staged.stage_mapped(range);
    }

    /// Whether data may be sent from mapped memory. With TLS it may not: encrypting reads it in
    /// this process, where a page that is gone is a SIGBUS.
    pub(crate) fn supports_mapped(&self) -> bool {
        !self.sender.is_tls()
    }

    /// Bytes of data of requests that are in flight, or answered and not sent.
    pub(crate) fn pending(&self) -> u64 {
        self.outstanding_bytes + self.staged.buffered() as u64
    }

    /// Keeps a grant of memory until all that is staged now is sent.
    pub(crate) fn hold_grant(&mut self, grant: Option<Grant>) {
        if self.staged.buffered() > 0 {
            self.held_grants.extend(grant);
        }
    }

    /// Notes a wait for the client. `true` if it reads too slowly for others to wait for its
    /// memory.
    pub(crate) fn has_waited(&mut self, time: Duration, stall: Duration) -> bool {
        self.lag.waited(time);
        self.holds_memory() && self.lag.exceeds(stall)
    }

    /// Whether this connection holds common memory, until the client reads or a worker begins.
    pub(crate) fn holds_memory(&self) -> bool {
        self.recv_holds_memory || !self.held_grants.is_empty() || !self.queued_grants.is_empty()
    }

    /// Sends as much as the socket has room for. `WouldBlock` if something is left.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        let sent = self.try_send();
        self.note_closed(sent)
    }

    /// Sends a reply whose data lies in a worker's buffer, and stages what the socket has no room
    /// for.
    pub(crate) fn send_directly(&mut self, head: &[u8], data: &[u8]) -> io::Result<()> {
        if !self.staged.is_empty() || self.is_draining || self.is_closed {
            self.stage(head);
            self.stage(data);
            return if self.is_draining { Ok(()) } else { self.send() };
        }
        let sent = match self.sender.send(&[IoSlice::new(head), IoSlice::new(data)]) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return self.note_closed(Err(error)),
        };
        self.stage(&head[sent.min(head.len())..]);
        self.stage(&data[sent.saturating_sub(head.len())..]);
        self.send()
    }

    fn try_send(&mut self) -> io::Result<()> {
        if self.is_closed {
            self.clear();
            return Ok(());
        }
        while !self.staged.is_empty() {
            match self.sender.send(&self.staged.parts()) {
                Ok(count) => {
                    self.lag.moved(count as u64);
                    self.staged.consume(count);
                }
                Err(error) if MappedRange::is_gone(&error) => self.staged.copy_ranges()?,
                Err(error) => return Err(error),
            }
        }
        self.clear();
        self.sender.flush()
    }

    /// Removes all that is staged.
    fn clear(&mut self) {
        self.staged.clear();
        self.held_grants.clear();
        self.lag = Lag::default();
    }

    /// Turns every error but `WouldBlock` into the end of the connection. The receiving thread
    /// notices that and reports it.
    fn note_closed(&mut self, sent: io::Result<()>) -> io::Result<()> {
        let Err(error) = sent else { return Ok(()) };
        match error.kind() {
            io::ErrorKind::WouldBlock => return Err(error),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                self.client_disconnected();
            }
            _ => self.hang_up(),
        }
        Ok(())
    }

    /// Whether nothing is sent any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether no request of the client is begun any more.
    pub(crate) fn is_hung_up(&self) -> bool {
        self.is_hung_up
    }

    /// Notes that the client does not read any more. Requests that it sent before and that change
    /// something are still executed: a client may close the connection after its last write and
    /// NBD_CMD_DISC. Reads are not begun any more, and their memory is given back.
    pub(crate) fn client_disconnected(&mut self) {
        self.is_closed = true;
        self.clear();
        self.queued_grants.clear();
        self.sender.socket().shutdown_receive();
        self.end_if_idle();
    }

    /// Disconnects the client. The socket is closed only when none of its requests is in flight any
    /// more: a client that sees the end may send its requests again, to another server of the same
    /// storage, and a write that this server executes later would undo a newer one.
    pub(crate) fn hang_up(&mut self) {
        self.is_hung_up = true;
        self.client_disconnected();
    }

    /// A worker is done with a request that has `data` bytes of data.
    pub(crate) fn finished(&mut self, data: u64) {
        self.outstanding -= 1;
        self.outstanding_bytes -= data;
        self.end_if_idle();
    }

    /// The write that was received directly has ended.
    pub(crate) fn direct_receive_ended(&mut self) {
        self.is_receiving_directly = false;
        self.end_if_idle();
    }

    /// Shuts the socket down after the last request of a closed connection. That also wakes a
    /// thread that waits for the client to read.
    fn end_if_idle(&self) {
        if self.is_closed && self.outstanding == 0 && !self.is_receiving_directly {
            self.sender.socket().shutdown();
        }
    }

    /// Logs the first refused request of a connection. The client gets an error for each one.
    pub(crate) fn log_refusal_once(&mut self, refusal: &RefusalReason) {
        if !self.has_refused && !matches!(refusal, RefusalReason::Stopping) {
            self.has_refused = true;
            let peer = self.sender.socket().peer();
            tracing::warn!("{peer}: {refusal}; later refusals are not logged");
        }
    }

    /// Ends the connection in order (TLS: close_notify). No request is in flight any more.
    pub(crate) fn close(&mut self) {
        if self.is_closed {
            return self.end_if_idle();
        }
        // An error is ignored: the socket closes next, and the client sees the end by that.
        let _ = self.sender.close();
    }
}

#[cfg(test)]
mod tests;
