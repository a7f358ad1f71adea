//! The transmission phase: parse requests, dispatch them, reply.
//!
//! One thread of the connection receives and executes. Workers reply when they are done, in any
//! order. No thread waits for the client to read its replies while it holds the lock of
//! [`SendState`]: a client that stops reading stops its own connection and no other.

mod direct_receive;
mod incoming;
mod next_action;
mod outgoing;
mod reply_sink;
mod shared;
mod task;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nbd_backend::{Completion, Dispatcher};
use nbd_proto::{CommandType, NbdError};

use crate::memory_budget::Grant;
use crate::recv_buffer::RecvBuffer;
use crate::reply::ReplyTarget;
use crate::request::{ProtocolError, RequestHeader};
use crate::send_buffer::{SEND_THRESHOLD, SendBuffer};
use next_action::NextAction;
use reply_sink::{ConnectionSink, NetworkRequest};
pub(crate) use shared::{Connection, ConnectionError, SendState};

/// How often a connection that waits for workers looks after its client.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);

impl Connection {
    /// Serves until the client disconnects.
    pub(crate) fn run(
        self: &Arc<Self>,
        recv_buffer: &mut RecvBuffer,
    ) -> Result<(), ConnectionError> {
        let end = self.transmit(recv_buffer);
        recv_buffer.close();
        let mut guard = self.lock();
        guard.send_buffer.recv_holds_memory = false;
        match end {
            Ok(()) => {}
            Err(ConnectionError::PeerVanished) => guard.send_buffer.hang_up(),
            // The client may still read the replies to its requests in flight.
            Err(_) => self.socket.shutdown_receive(),
        }
        drop(guard);
        self.has_disconnected();
        let mut guard =
            self.wait_until(|send_buffer| send_buffer.outstanding == 0 && !send_buffer.is_draining);
        let rest = guard.send_buffer.send();
        drop(guard);
        if rest.is_err() {
            self.drain();
        }
        self.lock().send_buffer.close();
        end
    }

    fn transmit(self: &Arc<Self>, recv_buffer: &mut RecvBuffer) -> Result<(), ConnectionError> {
        let mut dispatcher = Dispatcher::new(self.export.workers());
        let mut grant = None;
        loop {
            match self.serve(recv_buffer, &mut dispatcher, grant.take())? {
                NextAction::Receive(length) => match self.receive(recv_buffer, length)? {
                    0 if recv_buffer.bytes().is_empty() => return Ok(()),
                    0 => return Err(self.unexpected_eof()),
                    _ => {}
                },
                NextAction::ReceiveDirectly(write) => {
                    let received = self.direct_receive(recv_buffer, write);
                    self.lock().send_buffer.direct_receive_ended();
                    received?;
                }
                NextAction::SkipPayload(length) => self.skip(recv_buffer, length)?,
                NextAction::WaitForTasks => drop(self.wait_until(|send_buffer| {
                    send_buffer.outstanding == 0 || !self.is_full(send_buffer, recv_buffer.bytes())
                })),
                NextAction::WaitForMemory(bytes) => {
                    grant = self.wait_for_grant(recv_buffer, bytes);
                    // The client may have disconnected during the wait; then its read is skipped.
                    self.has_disconnected();
                }
                NextAction::Disconnect => return Ok(()),
            }
        }
    }

    /// Dispatches all received requests, and sends the replies that are ready. `grant` is for the
    /// data of the first request.
    fn serve(
        self: &Arc<Self>,
        recv_buffer: &mut RecvBuffer,
        dispatcher: &mut Dispatcher<'_>,
        mut grant: Option<Grant>,
    ) -> Result<NextAction, ProtocolError> {
        let mut guard = self.lock();
        dispatcher.request_arrived(|| guard.send_buffer.outstanding == 0);
        guard.send_buffer.recv_holds_memory = recv_buffer.holds_memory();
        let action = loop {
            let send_buffer = &mut guard.send_buffer;
            match self.dispatch_next(send_buffer, recv_buffer, dispatcher, grant.take()) {
                Ok(None) => {}
                Ok(Some(action)) => break Ok(action),
                Err(error) => break Err(error),
            }
            if guard.send_buffer.unsent() >= SEND_THRESHOLD {
                guard = self.send(guard, dispatcher);
            }
        };
        drop(self.send(guard, dispatcher));
        dispatcher.run_queued();
        action
    }

    /// Dispatches the next received request; or returns what must be done before.
    fn dispatch_next(
        self: &Arc<Self>,
        send_buffer: &mut SendBuffer,
        recv_buffer: &mut RecvBuffer,
        dispatcher: &mut Dispatcher<'_>,
        grant: Option<Grant>,
    ) -> Result<Option<NextAction>, ProtocolError> {
        if send_buffer.is_hung_up() {
            return Ok(Some(NextAction::Disconnect));
        }
        let head = RequestHeader::len(self.replies.style);
        let Some(header) = RequestHeader::parse(recv_buffer.bytes(), self.replies.style)? else {
            return Ok(Some(NextAction::Receive(head)));
        };
        if header.command_type() == CommandType::DISC {
            return Ok(Some(NextAction::Disconnect));
        }
        let payload_len = header.payload_len()?;
        let is_kept = payload_len <= self.rules.max_payload;
        let length = head + if is_kept { payload_len as usize } else { 0 };
        if recv_buffer.bytes().len() < length {
            let write = if is_kept {
                self.begin_direct_receive(recv_buffer, &header, length)
            } else {
                None
            };
            send_buffer.recv_holds_memory = recv_buffer.holds_memory();
            send_buffer.is_receiving_directly = write.is_some();
            return Ok(Some(
                write.map_or(NextAction::Receive(length), NextAction::ReceiveDirectly),
            ));
        }
        if send_buffer.outstanding > 0 && self.is_full(send_buffer, recv_buffer.bytes()) {
            return Ok(Some(NextAction::WaitForTasks));
        }
        self.prefetch_next(send_buffer, dispatcher, &recv_buffer.bytes()[length..]);
        let is_only_request = send_buffer.outstanding == 0
            && send_buffer.unsent() == 0
            && recv_buffer.bytes().len() == length;
        let payload = head..length;
        let request = NetworkRequest { connection: self, recv_buffer, header, payload, grant };
        let mut sink = ConnectionSink { connection: self, send_buffer };
        if let Err(blocked) = dispatcher.dispatch(&mut sink, request, is_only_request) {
            return Ok(Some(blocked));
        }
        recv_buffer.consume(length);
        Ok((!is_kept).then_some(NextAction::SkipPayload(u64::from(payload_len))))
    }

    /// Prefetches the data of the following request while this one is executed. Not for a read that
    /// is sent from mapped memory: the kernel copies that only when the replies are sent.
    fn prefetch_next(&self, send_buffer: &SendBuffer, dispatcher: &Dispatcher<'_>, bytes: &[u8]) {
        let Ok(Some(next)) = RequestHeader::parse(bytes, self.replies.style) else { return };
        let length = u32::try_from(next.data_len()).unwrap_or(u32::MAX);
        if next.command_type() != CommandType::READ || !self.prefers_mapped(send_buffer, length) {
            dispatcher.prefetch(next.address().offset, length);
        }
    }

    /// A reply without data.
    fn answer(&self, to: ReplyTarget, completion: Completion<'_>) -> Vec<u8> {
        let mut reply = Vec::new();
        match completion {
            Completion::Error(error) => self.replies.error(to, error, "", &mut reply),
            Completion::Extents(extents) if self.replies.extents(to, extents, &mut reply) => {}
            _ => {
                reply.resize(self.replies.done_len(), 0);
                self.replies.done(to, &mut reply);
            }
        }
        reply
    }

    /// Stages the answer to a command that returns no data.
    fn stage(&self, send_buffer: &mut SendBuffer, to: ReplyTarget, done: Result<(), NbdError>) {
        if let Err(error) = done {
            send_buffer.stage(&self.answer(to, Completion::Error(error)));
            return;
        }
        let length = self.replies.done_len();
        self.replies.done(to, send_buffer.room(length));
        send_buffer.advance(length);
    }

    /// Whether the next request would exceed the limits of requests in flight.
    fn is_full(&self, send_buffer: &SendBuffer, bytes: &[u8]) -> bool {
        let next = RequestHeader::parse(bytes, self.replies.style).ok().flatten();
        let more = next.map_or(0, |header| header.data_len());
        // A longer request is refused, so it moves no data.
        let more = if more > u64::from(self.rules.max_payload) { 0 } else { more };
        send_buffer.outstanding >= self.limits.in_flight
            || send_buffer.outstanding_bytes + more > self.limits.in_flight_bytes
    }

    /// The error for a stream that ended within a request.
    fn unexpected_eof(&self) -> ConnectionError {
        if self.is_stopping.load(Ordering::Relaxed) {
            ConnectionError::Stopped
        } else {
            ConnectionError::UnexpectedEof
        }
    }

    /// Whether the client has closed its socket, as far as the kernel knows.
    fn has_disconnected(&self) -> bool {
        let is_hung_up = self.socket.is_hung_up();
        Self::note_disconnect(&mut self.lock().send_buffer, is_hung_up)
    }

    /// Whether the client has disconnected, by now or before.
    fn note_disconnect(send_buffer: &mut SendBuffer, is_hung_up: bool) -> bool {
        if is_hung_up && !send_buffer.is_closed() {
            send_buffer.client_disconnected();
        }
        send_buffer.is_closed()
    }

    /// Disconnects the client if the lock is free; see [`SendBuffer::hang_up`]. The receiving
    /// thread holds the lock while it executes a command, for as long as the storage takes: waiting
    /// for it would let one stuck connection hold up the end of the server.
    pub(crate) fn try_hang_up(&self) {
        let guard = match self.shared.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut guard) = guard
            && !guard.send_buffer.is_hung_up()
        {
            guard.send_buffer.hang_up();
        }
    }

    fn lock(&self) -> MutexGuard<'_, SendState> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for replies of workers until a condition holds. Workers may be busy for long, so this
    /// looks from time to time whether the client is gone and its reads need not be begun.
    fn wait_until(&self, holds: impl Fn(&SendBuffer) -> bool) -> MutexGuard<'_, SendState> {
        let mut guard = self.lock();
        guard.has_waiter = true;
        let mut next_check = Instant::now() + CLIENT_CHECK_INTERVAL;
        while !holds(&guard.send_buffer) {
            let time = next_check.saturating_duration_since(Instant::now());
            let waited = self.changed.wait_timeout(guard, time);
            (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if Instant::now() >= next_check {
                next_check = Instant::now() + CLIENT_CHECK_INTERVAL;
                Self::note_disconnect(&mut guard.send_buffer, self.socket.is_hung_up());
            }
        }
        guard.has_waiter = false;
        guard
    }
}
