//! Replies on their way: staged together, sent together, and never waited for.

use std::io::{self, IoSlice};

use nbd_net::stream::Sender;

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
    /// For data among these bytes.
    held: Vec<Grant>,
    /// What is being received lies in common memory.
    pub(crate) inbox_holds: bool,
    /// Requests that are being worked on.
    pub(crate) outstanding: usize,
    /// Bytes of data of these requests.
    pub(crate) outstanding_bytes: u64,
    /// Somebody waits for the client to read, and sends when it does.
    pub(crate) is_draining: bool,
    /// Nobody reads any more, so nothing needs to be sent.
    is_closed: bool,
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
            held: Vec::new(),
            inbox_holds: false,
            outstanding: 0,
            outstanding_bytes: 0,
            is_draining: false,
            is_closed: false,
            has_refused: false,
        }
    }

    /// Bytes staged and not sent.
    pub(crate) fn staged(&self) -> usize {
        self.end - self.start
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

    /// Whether this connection takes up common memory for as long as the client does not read.
    pub(crate) fn holds_memory(&self) -> bool {
        self.inbox_holds || !self.held.is_empty()
    }

    /// Where the next `length` staged bytes will lie; [`advance`](Self::advance) stages them.
    pub(crate) fn room(&mut self, length: usize) -> &mut [u8] {
        if self.buffer.len() - self.end < length {
            self.buffer.copy_within(self.start..self.end, 0);
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

    /// Sends what the client takes without making us wait. `WouldBlock` if something is left.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        let sent = self.try_send();
        self.note_closed(sent)
    }

    /// Sends a reply whose data lies elsewhere; what the client does not take now is staged.
    pub(crate) fn send_directly(&mut self, head: &[u8], data: &[u8]) -> io::Result<()> {
        if self.staged() > 0 || self.is_draining || self.is_closed {
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
        while self.start < self.end {
            let rest = IoSlice::new(&self.buffer[self.start..self.end]);
            self.start += self.sender.send(&[rest])?;
        }
        self.clear();
        self.sender.flush()
    }

    /// Forgets all that is staged.
    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        if self.buffer.len() > 4 * BUFFER {
            self.buffer = vec![0; BUFFER];
        }
        self.held.clear();
    }

    /// A client that is gone is no error here: whoever receives from it notices as well.
    fn note_closed(&mut self, sent: io::Result<()>) -> io::Result<()> {
        match sent {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                self.is_closed = true;
                self.clear();
                self.sender.socket().shutdown();
                Ok(())
            }
            other => other,
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

    /// Says goodbye where the transport has a word for it.
    pub(crate) fn close(&mut self) {
        let _ = self.sender.close();
    }
}
