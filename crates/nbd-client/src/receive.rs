//! Taking replies, and finishing what they answer.

use std::io;

use nbd_proto::NbdError;
use nbd_proto::handshake::ReplyStyle;

use crate::connection::Connection;
use crate::error::{Lost, ProtocolError};
use crate::head::{Head, Kind, Parsed};
use crate::inbox::{End, Inbox, LONG};
use crate::reply::{Body, Effect, Failure};
use crate::table::Pending;

/// The receiving side of a connection.
pub(crate) struct Reception<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) inbox: Inbox,
    /// Whom the log is about.
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
    /// That was all, and it was all of a job's data: so many bytes, which are in the inbox.
    InOnePiece(usize),
}

impl Reception<'_> {
    /// Takes replies until the connection is over.
    pub(crate) fn run(&mut self) -> Lost {
        loop {
            if let Err(lost) = self.reply() {
                return lost;
            }
        }
    }

    fn reply(&mut self) -> Result<(), Lost> {
        let head = self.head()?;
        let cookie = head.cookie;
        let pending = self.connection.take(cookie);
        let mut pending = pending.ok_or(ProtocolError::Cookie(cookie))?;
        self.inbox.consume(head.len);
        match self.body(&head, &mut pending) {
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
                let data = self.inbox.bytes().get(..length).unwrap_or_default();
                pending.job.answered_with(data);
                self.inbox.consume(length);
                Ok(())
            }
            Ok(Progress::Complete) => self.complete(pending),
        }
    }

    fn head(&mut self) -> Result<Head, Lost> {
        loop {
            match Head::parse(self.inbox.bytes(), self.connection.terms.style)? {
                Parsed::Head(head) => return Ok(head),
                Parsed::More(length) => match self.inbox.complete(length) {
                    Ok(Ok(())) => {}
                    Ok(Err(End)) if self.inbox.bytes().is_empty() => return Err(Lost::Closed),
                    other => checked(other)?,
                },
            }
        }
    }

    /// Takes what is behind a head.
    fn body(&mut self, head: &Head, pending: &mut Pending) -> Result<Progress, Lost> {
        let terms = self.connection.terms;
        let is_first = pending.reply.is_untouched();
        let body = pending.reply.head(head, terms.style == ReplyStyle::Simple)?;
        let is_last = match head.kind {
            Kind::Simple(_) => true,
            Kind::Chunk(chunk) => chunk.is_last,
        };
        match body {
            Body::Nothing => {}
            Body::Data(range) => {
                let length = (range.end - range.start) as usize;
                let (_, whole) = pending.job.command.range();
                if is_first && is_last && length as u64 == whole && self.is_at_hand(length) {
                    checked(self.inbox.complete(length))?;
                    return Ok(Progress::InOnePiece(length));
                }
                let at = (pending.at + range.start) as usize;
                let mut data = pending.job.take_data();
                let taken = self.inbox.take(&mut data[at..at + length]);
                pending.job.put_data(data);
                checked(taken)?;
            }
            Body::Payload { reply_type, length } => {
                checked(self.inbox.complete(length))?;
                let payload = self.inbox.bytes().get(..length).unwrap_or_default();
                let effect = pending.reply.payload(reply_type, payload, terms.allocation)?;
                self.inbox.consume(length);
                if let Effect::Zeroes(range) = effect {
                    let start = pending.at + range.start;
                    let end = pending.at + range.end;
                    let mut data = pending.job.take_data();
                    data[start as usize..end as usize].fill(0);
                    pending.job.put_data(data);
                }
            }
        }
        Ok(if is_last { Progress::Complete } else { Progress::Partial })
    }

    /// Whether data are in the buffer already, or not worth a buffer of their own.
    fn is_at_hand(&self, length: usize) -> bool {
        length <= LONG || self.inbox.bytes().len() >= length
    }

    /// Settles a request whose reply has come, and sends what its job has left.
    fn complete(&mut self, mut pending: Pending) -> Result<(), Lost> {
        let result = match pending.reply.finish() {
            Ok(Err(Failure { error: NbdError::ESHUTDOWN, .. })) => Err(Lost::ShuttingDown),
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
        tracing::warn!("{}: {command:?} failed: {error}{colon}{words:?}", self.name);
    }
}

fn checked(received: io::Result<Result<(), End>>) -> Result<(), Lost> {
    match received {
        Ok(Ok(())) => Ok(()),
        Ok(Err(End)) => Err(Lost::Torn),
        Err(error) => Err(Lost::Receive(error)),
    }
}
