//! Writes whose data is received to where it belongs, and nowhere else before.

use std::sync::atomic::Ordering::Relaxed;

use nbd_backend::Span;
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
    /// Where it ends on the export; the span knows its place in the storage below.
    end: u64,
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
        if length - inbox.bytes().len() < WORTH
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
        // The client may take its time, and others may want that memory.
        inbox.let_go().ok()?;
        let data = &inbox.bytes()[head..];
        self.write(data, offset).ok()?;
        span.consume(data.len());
        inbox.consume(head + data.len());
        Some(Landing { to: header.address(), end: offset + u64::from(length), span })
    }

    /// Receives the rest, and stages the answer.
    pub(super) fn land(
        &self,
        inbox: &mut Inbox,
        Landing { to, end, mut span }: Landing,
    ) -> Result<(), ConnectionError> {
        let head = Header::len(self.replies.style);
        let mut done = Ok(());
        while !span.is_empty() {
            if self.lock().outbox.is_hung_up() {
                return Err(self.torn());
            }
            match self.hear(inbox, |inbox| inbox.receive_into(&mut span, head)) {
                Ok(0) => return Err(self.torn()),
                Ok(_) => {}
                Err(ConnectionError::Receive(error)) if Span::is_gone(&error) => {
                    // Nothing is written behind a gap: the storage would grow back around it.
                    tracing::warn!("{span:?} was to be received to and is gone: {error}");
                    done = Err(NbdError::EIO);
                    self.skip(inbox, span.len() as u64)?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        // The storage may have been cut off meanwhile.
        let done = self.write(&[], end).and(done);
        self.stage(&mut self.lock().outbox, to, done);
        Ok(())
    }

    /// Writes a part of some data, which takes no time.
    fn write(&self, data: &[u8], offset: u64) -> Result<(), NbdError> {
        let command = Command::Write { offset, length: data.len() as u32, fua: false };
        self.attempt(&command, data, &mut [], true).map_or(Err(NbdError::EIO), |(done, _)| done)
    }
}
