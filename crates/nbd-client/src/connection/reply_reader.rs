//! Taking replies, and finishing what they answer.

use std::io;

use nbd_proto::NbdError;
use nbd_proto::handshake::ReplyStyle;

use crate::connection::Connection;
use crate::connection::in_flight::Pending;
use crate::connection::recv_buffer::{DIRECT_RECEIVE_MIN_BYTES, End, RecvBuffer};
use crate::error::{ConnectionLost, ProtocolError};
use crate::reply::header::{Parsed, ReplyHeader, ReplyHeaderKind};
use crate::reply::{Body, Failure, ReplyAction};

/// The receiving side of a connection.
pub(crate) struct ReplyReader<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) recv_buffer: RecvBuffer,
    /// The target, for log messages.
    pub(crate) name: &'a str,
    /// Something was answered.
    pub(crate) was_useful: bool,
}

/// What is known about a request after another piece of its reply.
enum Progress {
    /// There is more to come.
    Partial,
    /// That was all.
    Complete,
    /// That was all, and it was all of a job's data: so many bytes, which are in the receive buffer.
    InOnePiece(usize),
}

impl ReplyReader<'_> {
    /// Takes replies until the connection is over.
    pub(crate) fn run(&mut self) -> ConnectionLost {
        loop {
            if let Err(lost) = self.reply() {
                return lost;
            }
        }
    }

    fn reply(&mut self) -> Result<(), ConnectionLost> {
        let header = self.header()?;
        let cookie = header.cookie;
        let pending = self.connection.take(cookie);
        let mut pending = pending.ok_or(ProtocolError::Cookie(cookie))?;
        self.recv_buffer.consume(header.len);
        match self.body(&header, &mut pending) {
            Err(lost) => {
                self.connection.put_back(pending);
                Err(lost)
            }
            Ok(Progress::Partial) => {
                self.connection.put_back(pending);
                Ok(())
            }
            Ok(Progress::InOnePiece(length)) => {
                self.was_useful = true;
                self.connection.remove(cookie);
                let data = self.recv_buffer.bytes().get(..length).unwrap_or_default();
                pending.job.answered_with(data);
                self.recv_buffer.consume(length);
                Ok(())
            }
            Ok(Progress::Complete) => self.complete(pending),
        }
    }

    fn header(&mut self) -> Result<ReplyHeader, ConnectionLost> {
        loop {
            match ReplyHeader::parse(self.recv_buffer.bytes(), self.connection.negotiated.style)? {
                Parsed::Header(header) => return Ok(header),
                Parsed::More(length) => match self.recv_buffer.complete(length) {
                    Ok(Ok(())) => {}
                    Ok(Err(End)) if self.recv_buffer.bytes().is_empty() => {
                        return Err(ConnectionLost::Closed);
                    }
                    other => checked(other)?,
                },
            }
        }
    }

    /// Takes what is behind a header.
    fn body(
        &mut self,
        header: &ReplyHeader,
        pending: &mut Pending,
    ) -> Result<Progress, ConnectionLost> {
        let negotiated = self.connection.negotiated;
        let is_first = pending.reply.is_empty();
        let body = pending.reply.header(header, negotiated.style == ReplyStyle::Simple)?;
        let is_last = match header.kind {
            ReplyHeaderKind::Simple(_) => true,
            ReplyHeaderKind::Chunk(chunk) => chunk.is_last,
        };
        match body {
            Body::Nothing => {}
            Body::Data(range) => {
                let length = (range.end - range.start) as usize;
                let (_, whole) = pending.job.command.range();
                if is_first && is_last && length as u64 == whole && self.is_at_hand(length) {
                    checked(self.recv_buffer.complete(length))?;
                    return Ok(Progress::InOnePiece(length));
                }
                let at = (pending.at + range.start) as usize;
                let mut data = pending.job.take_buffer();
                let taken = self.recv_buffer.take(&mut data[at..at + length]);
                pending.job.put_buffer(data);
                checked(taken)?;
            }
            Body::Payload { reply_type, length } => {
                checked(self.recv_buffer.complete(length))?;
                let payload = self.recv_buffer.bytes().get(..length).unwrap_or_default();
                let action = pending.reply.payload(reply_type, payload, negotiated.allocation)?;
                self.recv_buffer.consume(length);
                if let ReplyAction::Zeroes(range) = action {
                    let start = pending.at + range.start;
                    let end = pending.at + range.end;
                    let mut data = pending.job.take_buffer();
                    data[start as usize..end as usize].fill(0);
                    pending.job.put_buffer(data);
                }
            }
        }
        Ok(if is_last { Progress::Complete } else { Progress::Partial })
    }

    /// Whether data are in the buffer already, or not worth a buffer of their own.
    fn is_at_hand(&self, length: usize) -> bool {
        length <= DIRECT_RECEIVE_MIN_BYTES || self.recv_buffer.bytes().len() >= length
    }

    /// Settles a request whose reply has come, and sends what its job has left.
    fn complete(&mut self, mut pending: Pending) -> Result<(), ConnectionLost> {
        let result = match pending.reply.finish() {
            Ok(Err(Failure { error: NbdError::ESHUTDOWN, .. })) => {
                Err(ConnectionLost::ShuttingDown)
            }
            Ok(result) => Ok(result),
            Err(error) => Err(error.into()),
        };
        let result = match result {
            Ok(result) => result,
            Err(lost) => {
                self.connection.put_back(pending);
                return Err(lost);
            }
        };
        let Pending { cookie, job, command, .. } = pending;
        if let Err(failure) = &result {
            self.tell(failure, &command);
        }
        self.was_useful = true;
        self.connection.remove(cookie);
        if job.answered(result) {
            // Never refused: this thread alone closes the connection.
            let _ = self.connection.submit(job);
        }
        Ok(())
    }

    fn tell(&self, failure: &Failure, command: &nbd_proto::Command) {
        let Failure { error, words } = failure;
        let is_answer = matches!(command, nbd_proto::Command::WriteZeroes { fast_only: true, .. });
        if is_answer && *error == NbdError::ENOTSUP {
            return;
        }
        let colon = if words.is_empty() { "" } else { ": " };
        tracing::warn!("{}: {command} failed: {error}{colon}{words:?}", self.name);
    }
}

fn checked(received: io::Result<Result<(), End>>) -> Result<(), ConnectionLost> {
    match received {
        Ok(Ok(())) => Ok(()),
        Ok(Err(End)) => Err(ConnectionLost::UnexpectedEof),
        Err(error) => Err(ConnectionLost::Receive(error)),
    }
}
