//! Bytes as they come: many small replies with one system call, long data past the buffer.

use std::io;

use nbd_net::stream::Receiver;

/// Size of the buffer, in bytes, unless one message needs more.
const RECV_BUFFER_BYTES: usize = 256 << 10;
/// Data that are longer than this and not all there yet are received where they belong.
pub(crate) const DIRECT_RECEIVE_MIN_BYTES: usize = 64 << 10;

/// The receiving end of a connection.
pub(crate) struct RecvBuffer {
    receiver: Receiver,
    buffer: Vec<u8>,
    /// What has come and was not consumed is at `start..end`.
    start: usize,
    end: usize,
}

/// The stream ended.
#[derive(Debug)]
pub(crate) struct End;

impl RecvBuffer {
    /// `first` came with the end of the handshake.
    pub(crate) fn new(receiver: Receiver, first: &[u8]) -> Self {
        let mut buffer = vec![0; RECV_BUFFER_BYTES.max(first.len())];
        buffer[..first.len()].copy_from_slice(first);
        Self { receiver, buffer, start: 0, end: first.len() }
    }

    /// What has come and was not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Forgets the first bytes, or all there are.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Waits until the message that the bytes begin has all its `length` bytes.
    pub(crate) fn complete(&mut self, length: usize) -> io::Result<Result<(), End>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > RECV_BUFFER_BYTES {
                self.buffer = vec![0; RECV_BUFFER_BYTES];
            }
        }
        if self.start + length > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() < length {
                self.buffer.resize(length, 0);
            }
        }
        while self.end - self.start < length {
            match receive(&mut self.receiver, &mut self.buffer[self.end..])? {
                0 => return Ok(Err(End)),
                count => self.end += count,
            }
        }
        Ok(Ok(()))
    }

    /// Fills `room` with what has come and with what comes next.
    pub(crate) fn take(&mut self, room: &mut [u8]) -> io::Result<Result<(), End>> {
        let have = self.bytes().len().min(room.len());
        room[..have].copy_from_slice(&self.bytes()[..have]);
        self.consume(have);
        let mut filled = have;
        while filled < room.len() {
            match receive(&mut self.receiver, &mut room[filled..])? {
                0 => return Ok(Err(End)),
                count => filled += count,
            }
        }
        Ok(Ok(()))
    }
}

/// A connection that was reset has ended; how is of no interest.
fn receive(receiver: &mut Receiver, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match receiver.receive(room) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
            other => return other,
        }
    }
}
