//! Writes whose data is received to where it belongs, and nowhere else before.

use std::sync::atomic::Ordering::Relaxed;

use nbd_backend::{Completion, Span};
use nbd_proto::{Command, NbdError};

use super::{Connection, ConnectionError};
use crate::inbox::Inbox;
use crate::reply::Address;
use crate::request::Header;

/// When less than this is missing of a write's data, in bytes, it is received as all else. Much less
/// than the shortest write that is worth it: a part of that may have come with what was before.
const WORTH: usize = 16 << 10;

/// A write whose data is on its way.
pub(super) struct Landing {
    to: Address,
    /// Where the rest of its data belongs.
    span: Span,
}

impl Connection {
    /// Begins with a write of which a part is missing, if the rest can be received to where it
    /// belongs. What has come of it, with its header, is written and consumed.
    pub(super) fn landing(
        &self,
        inbox: &mut Inbox,
        header: &Header,
        length: usize,
    ) -> Option<Landing> {
        let head = Header::len(self.replies.style);
        let data = &inbox.bytes()[head..];
        if length - head - data.len() < WORTH
            || !inbox.takes_spans()
            || self.is_stopping.load(Relaxed)
        {
            return None;
        }
        // Whatever is wrong with it is found out and told when all of it has come.
        let Ok(Command::Write { offset, length, fua: false }) =
            header.check(&self.rules, &[], self.replies.allocation)
        else {
            return None;
        };
        let mut span = self.export.backend().span_mut(offset, length)?;
        self.write(data, offset).ok()?;
        span.consume(data.len());
        inbox.consume(head + data.len());
        Some(Landing { to: header.address(), span })
    }

    /// Receives the rest, and stages the answer.
    pub(super) fn land(
        &self,
        inbox: &mut Inbox,
        mut landing: Landing,
    ) -> Result<(), ConnectionError> {
        let head = Header::len(self.replies.style);
        let span = &mut landing.span;
        let (mut done, mut is_gone) = (Ok(()), false);
        while !span.is_empty() {
            if is_gone {
                done = done.and(self.land_by_hand(inbox, span)?);
                continue;
            }
            match self.hear(inbox, |inbox| inbox.receive_into(span, head)) {
                Ok(0) => return Err(self.torn()),
                Ok(_) => {}
                Err(ConnectionError::Receive(error)) if Span::is_gone(&error) => {
                    is_gone = true;
                    done = self.write(&[], span.offset());
                    if done.is_err() {
                        // What is written now would be there, and what was received not.
                        self.skip(inbox, span.len() as u64)?;
                        span.consume(span.len());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        // The storage may have been cut off meanwhile.
        let done = done.and_then(|()| self.write(&[], span.offset()));
        let completion = done.map_or_else(Completion::Error, |()| Completion::Done);
        self.lock().outbox.stage(&self.answer(landing.to, completion));
        Ok(())
    }

    /// Takes some of the data and writes it, as it cannot be received to where it belongs any more.
    fn land_by_hand(
        &self,
        inbox: &mut Inbox,
        span: &mut Span,
    ) -> Result<Result<(), NbdError>, ConnectionError> {
        if inbox.bytes().is_empty() && self.receive(inbox, 1)? == 0 {
            return Err(self.torn());
        }
        let count = inbox.bytes().len().min(span.len());
        let done = self.write(&inbox.bytes()[..count], span.offset());
        inbox.consume(count);
        span.consume(count);
        Ok(done)
    }

    /// Writes a part of some data, which takes no time.
    fn write(&self, data: &[u8], offset: u64) -> Result<(), NbdError> {
        let command = Command::Write { offset, length: data.len() as u32, fua: false };
        self.attempt(&command, data, &mut [], true).map_or(Err(NbdError::EIO), |(done, _)| done)
    }
}
