//! Replies on their way: staged together, sent together, and never waited for.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::take;
use std::time::Duration;

use nbd_backend::Span;
use nbd_net::stream::Sender;

use crate::limits::is_too_slow;
use crate::memory::Grant;
use crate::request::Refused;

/// Size of the buffer, in bytes, until something needs a larger one: enough for a client that asks
/// for little at once, of whom there may be hundreds …
const FIRST: usize = 64 << 10;
/// … and afterwards, while nothing needs a still larger one.
const BUFFER: usize = 512 << 10;
/// Staged bytes that are worth a system call of their own, so that the client can go on while we
/// do.
pub(crate) const ENOUGH: usize = 256 << 10;

/// The sending end of a connection. Its users hold the connection's lock.
pub(crate) struct Outbox {
    sender: Sender,
    /// Bytes to send are at `start..end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Data that lies elsewhere, and the place in the buffer before which it is to be sent.
    spans: VecDeque<(usize, Span)>,
    /// Bytes of these.
    lent: usize,
    /// For data among these bytes.
    held: Vec<Grant>,
    /// How long the client was waited for since something was held first, and what was sent since, in
    /// bytes.
    waited: Duration,
    sent_since: u64,
    /// What is being received lies in common memory.
    pub(crate) inbox_holds: bool,
    /// Requests that are being worked on.
    pub(crate) outstanding: usize,
    /// Bytes of data of these requests.
    pub(crate) outstanding_bytes: u64,
    /// Somebody waits for the client to read, and sends when it does.
    pub(crate) is_draining: bool,
    /// The receiving thread has begun with a write whose data goes to where it belongs.
    pub(crate) is_landing: bool,
    /// The client has left or was left: nothing is sent any more.
    is_closed: bool,
    /// The client was left: nothing of it is begun any more either.
    is_hung_up: bool,
    /// A request was refused, which is told once.
    has_refused: bool,
}

impl Outbox {
    pub(crate) fn new(sender: Sender) -> Self {
        Self {
            sender,
            buffer: vec![0; FIRST],
            start: 0,
            end: 0,
            spans: VecDeque::new(),
            lent: 0,
            held: Vec::new(),
            waited: Duration::ZERO,
            sent_since: 0,
            inbox_holds: false,
            outstanding: 0,
            outstanding_bytes: 0,
            is_draining: false,
            is_landing: false,
            is_closed: false,
            is_hung_up: false,
            has_refused: false,
        }
    }

    /// Bytes to send.
    pub(crate) fn unsent(&self) -> usize {
        self.staged() + self.lent
    }

    /// Those of them that lie here.
    fn staged(&self) -> usize {
        self.end - self.start
    }

    fn is_empty(&self) -> bool {
        self.staged() == 0 && self.spans.is_empty()
    }

    /// Whether data may be sent from where it lies. To encrypt it is to look at it.
    pub(crate) fn takes_spans(&self) -> bool {
        !self.sender.is_tls()
    }

    /// Bytes of data of requests that are under way or answered and not sent.
    pub(crate) fn pending(&self) -> u64 {
        self.outstanding_bytes + self.staged() as u64
    }

    /// Keeps the right to memory until all that is staged now is sent.
    pub(crate) fn hold(&mut self, grant: Option<Grant>) {
        if self.staged() > 0 {
            self.held.extend(grant);
        }
    }

    /// The client was waited for; `true` if it reads so slowly that others should not have to wait for
    /// the memory.
    pub(crate) fn has_waited(&mut self, time: Duration, stall: Duration) -> bool {
        self.waited += time;
        !self.held.is_empty() && is_too_slow(self.waited, self.sent_since, stall)
    }

    /// Whether this connection takes up common memory for as long as the client does not read.
    pub(crate) fn holds_memory(&self) -> bool {
        self.inbox_holds || !self.held.is_empty()
    }

    /// Where the next `length` staged bytes will lie; [`advance`](Self::advance) stages them.
    pub(crate) fn room(&mut self, length: usize) -> &mut [u8] {
        if self.buffer.len() - self.end < length {
            self.buffer.copy_within(self.start..self.end, 0);
            for (place, _) in &mut self.spans {
                *place -= self.start;
            }
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() < self.end + length {
                self.buffer.resize((self.end + length).next_multiple_of(BUFFER), 0);
            }
        }
        &mut self.buffer[self.end..self.end + length]
    }

    /// Stages bytes that were put into [`room`](Self::room).
    pub(crate) fn advance(&mut self, length: usize) {
        assert!(length <= self.buffer.len() - self.end, "staging what has no room");
        self.end += length;
    }

    pub(crate) fn stage(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// Stages data where it lies, if [that is possible](Self::takes_spans).
    pub(crate) fn stage_span(&mut self, span: Span) {
        self.lent += span.len();
        self.spans.push_back((self.end, span));
    }

    /// Sends what the client takes without making us wait. `WouldBlock` if something is left.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        let sent = self.try_send();
        self.note_closed(sent)
    }

    /// Sends a reply whose data lies elsewhere; what the client does not take now is staged.
    pub(crate) fn send_directly(&mut self, head: &[u8], data: &[u8]) -> io::Result<()> {
        if !self.is_empty() || self.is_draining || self.is_closed {
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
        while !self.is_empty() {
            match self.sender.send(&parts(&self.buffer[..self.end], self.start, &self.spans)) {
                Ok(count) => self.sent(count),
                Err(error) if Span::is_gone(&error) => self.take_in()?,
                Err(error) => return Err(error),
            }
        }
        self.clear();
        self.sender.flush()
    }

    /// Forgets what was sent.
    fn sent(&mut self, mut count: usize) {
        self.sent_since += count as u64;
        while count > 0 {
            let next = self.spans.front().map_or(self.end, |(place, _)| *place);
            let staged = count.min(next - self.start);
            self.start += staged;
            count -= staged;
            let Some((_, span)) = self.spans.front_mut().filter(|_| self.start == next) else {
                assert_eq!(count, 0, "more was sent than there is");
                return;
            };
            let lent = count.min(span.len());
            span.consume(lent);
            self.lent -= lent;
            count -= lent;
            if span.is_empty() {
                self.spans.pop_front();
            }
        }
    }

    /// Copies what lies elsewhere, since it cannot be sent from there any more. If it cannot be
    /// copied either, a client that has been told to expect it can only be left.
    fn take_in(&mut self) -> io::Result<()> {
        let (staged, spans) = (self.buffer[self.start..self.end].to_vec(), take(&mut self.spans));
        let mut at = self.start;
        (self.start, self.end, self.lent) = (0, 0, 0);
        let mut rest = &staged[..];
        for (place, span) in spans {
            let (before, after) = rest.split_at(place - at);
            (at, rest) = (place, after);
            self.stage(before);
            let room = self.room(span.len());
            span.read(room).inspect_err(|error| {
                tracing::error!("{span:?} was to be sent and is gone, so is the client: {error}");
            })?;
            self.advance(span.len());
        }
        self.stage(rest);
        Ok(())
    }

    /// Forgets all that is staged.
    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        self.spans.clear();
        self.lent = 0;
        if self.buffer.len() > 4 * BUFFER {
            self.buffer = vec![0; BUFFER];
        }
        self.held.clear();
        (self.waited, self.sent_since) = (Duration::ZERO, 0);
    }

    /// A client that is gone is no error here: whoever receives from it notices as well.
    fn note_closed(&mut self, sent: io::Result<()>) -> io::Result<()> {
        let Err(error) = sent else { return Ok(()) };
        match error.kind() {
            io::ErrorKind::WouldBlock => return Err(error),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.client_left(),
            _ => self.hang_up(),
        }
        Ok(())
    }

    /// Whether nothing is sent any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether nothing of the client is begun any more.
    pub(crate) fn is_hung_up(&self) -> bool {
        self.is_hung_up
    }

    /// Nobody reads any more. What had come by then is still received.
    pub(crate) fn client_left(&mut self) {
        self.is_closed = true;
        self.clear();
        self.sender.socket().shutdown_receive();
        self.end_if_idle();
    }

    /// Leaves the client. It sees the end of the connection when nothing of it is under way any
    /// more, and not before: it may then send its requests again, to another server of the same
    /// storage, and a write of ours that lands later would undo a newer one.
    pub(crate) fn hang_up(&mut self) {
        self.is_hung_up = true;
        self.client_left();
    }

    /// A request has been answered, or would have been.
    pub(crate) fn finished(&mut self, data: u64) {
        self.outstanding -= 1;
        self.outstanding_bytes -= data;
        self.end_if_idle();
    }

    /// The write whose data went to where it belongs is over.
    pub(crate) fn landed(&mut self) {
        self.is_landing = false;
        self.end_if_idle();
    }

    /// That also wakes whoever waits for the client to read.
    fn end_if_idle(&self) {
        if self.is_closed && self.outstanding == 0 && !self.is_landing {
            self.sender.socket().shutdown();
        }
    }

    /// Tells people that the client has sent something odd. It is told itself each time.
    pub(crate) fn tell_refused(&mut self, refusal: &Refused) {
        if !self.has_refused && !matches!(refusal, Refused::Stopping) {
            self.has_refused = true;
            let peer = self.sender.socket().peer();
            tracing::warn!("{peer}: {refusal}; later ones are refused without a word here");
        }
    }

    /// Says goodbye where the transport has a word for it, when nothing is under way any more.
    pub(crate) fn close(&mut self) {
        if self.is_closed {
            return self.end_if_idle();
        }
        // If there is no room for a farewell, the end of the socket has to do.
        let _ = self.sender.close();
    }
}

/// All that is to be sent, piece by piece.
#[allow(unsafe_code)]
fn parts<'a>(
    staged: &'a [u8],
    mut start: usize,
    spans: &'a VecDeque<(usize, Span)>,
) -> Vec<IoSlice<'a>> {
    let mut parts = Vec::with_capacity(2 * spans.len() + 1);
    for (place, span) in spans {
        if start < *place {
            parts.push(IoSlice::new(&staged[start..*place]));
        }
        // SAFETY: the pieces are for sendmsg(2) alone: a secured connection takes no spans.
        parts.push(unsafe { span.io_slice() });
        start = *place;
    }
    if start < staged.len() {
        parts.push(IoSlice::new(&staged[start..]));
    }
    parts
}

#[cfg(test)]
mod tests;
