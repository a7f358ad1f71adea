//! Requests on their way to the server.
//!
//! A thread that has a request sends it together with all that is queued. It does not wait for a server
//! that takes no more: what is left is sent by the connection's sender thread.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use nbd_net::stream::Sender;
use nbd_proto::handshake::ReplyStyle;
use nbd_proto::{Command, ExtendedRequest, Request};

use crate::job::Job;

/// The most slices that are sent with one system call.
const MAX_SLICES: usize = 64;

/// The sending end of a connection.
pub(crate) struct SendQueue {
    sender: Sender,
    queue: VecDeque<Message>,
    /// Bytes of the first message that were sent.
    sent: usize,
    pub(crate) state: SendState,
}

/// Which thread sends.
#[derive(Debug)]
pub(crate) enum SendState {
    /// Each thread that has something to send.
    Open,
    /// The socket takes no more for now; the sender thread waits until it does.
    Blocked,
    /// None: sending failed.
    Failed(io::Error),
    /// None: the connection is over.
    Ended,
}

/// A request on its way.
pub(crate) struct Message {
    head: [u8; ExtendedRequest::LEN],
    head_len: usize,
    /// A write's data.
    payload: Option<(Arc<Job>, Range<usize>)>,
}

impl Message {
    /// The message for a request; its length must be one that the style has room for.
    pub(crate) fn new(command: &Command, cookie: u64, style: ReplyStyle) -> Option<Self> {
        let mut head = [0; ExtendedRequest::LEN];
        let head_len = if style == ReplyStyle::Extended {
            head = command.to_extended_request(cookie).encode();
            ExtendedRequest::LEN
        } else {
            head[..Request::LEN].copy_from_slice(&command.to_request(cookie)?.encode());
            Request::LEN
        };
        Some(Self { head, head_len, payload: None })
    }

    /// Puts data of a job behind the request.
    pub(crate) fn with_payload(mut self, job: Arc<Job>, range: Range<usize>) -> Self {
        self.payload = Some((job, range));
        self
    }

    fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    fn data(&self) -> &[u8] {
        let Some((job, range)) = &self.payload else {
            return &[];
        };
        job.payload().get(range.clone()).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.head_len + self.payload.as_ref().map_or(0, |(_, range)| range.len())
    }
}

impl SendQueue {
    pub(crate) fn new(sender: Sender) -> Self {
        Self { sender, queue: VecDeque::new(), sent: 0, state: SendState::Open }
    }

    pub(crate) fn push(&mut self, message: Message) {
        self.queue.push_back(message);
    }

    /// Sends what the server takes. Returns the payloads that are sent: the last share in a job
    /// must not be dropped under a lock.
    pub(crate) fn send(&mut self) -> Vec<Arc<Job>> {
        let mut sent = Vec::new();
        self.state = match self.try_send(&mut sent) {
            Ok(()) => SendState::Open,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => SendState::Blocked,
            Err(error) => SendState::Failed(error),
        };
        sent
    }

    /// Tells the server that what was sent is all.
    pub(crate) fn close(&mut self) {
        // Fails if the socket is full. The disconnect request before it says the same.
        let _ = self.sender.close();
    }

    /// Sends nothing any more. Returns what must not be dropped under a lock.
    pub(crate) fn end(&mut self) -> (VecDeque<Message>, SendState) {
        (std::mem::take(&mut self.queue), std::mem::replace(&mut self.state, SendState::Ended))
    }

    fn try_send(&mut self, sent: &mut Vec<Arc<Job>>) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let pieces = self.queue.iter().flat_map(|message| [message.head(), message.data()]);
            let mut count = 0;
            let mut skip = self.sent;
            for piece in pieces.filter(|piece| !piece.is_empty()).take(MAX_SLICES) {
                let here = skip.min(piece.len());
                skip -= here;
                if here < piece.len() {
                    slices[count] = IoSlice::new(&piece[here..]);
                    count += 1;
                }
            }
            match self.sender.send(&slices[..count])? {
                0 => return Err(io::ErrorKind::WouldBlock.into()),
                bytes => self.advance(bytes, sent),
            }
        }
        self.sender.flush()
    }

    fn advance(&mut self, bytes: usize, sent: &mut Vec<Arc<Job>>) {
        self.sent += bytes;
        while let Some(message) = self.queue.front() {
            let length = message.len();
            if self.sent < length {
                return;
            }
            self.sent -= length;
            let payload = self.queue.pop_front().and_then(|message| message.payload);
            sent.extend(payload.map(|(job, _)| job));
        }
    }
}
