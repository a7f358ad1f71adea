//! The transmit side of a lane: answers become bytes, and bytes reach the kernel exactly once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nbd_proto::{CommandType, NbdError, SimpleReply};

use crate::crash_points::{CrashPoint, crash_point};
use crate::latency::Latencies;
use crate::layout::{SlotState, Totals, TransmitRecord};
use crate::ledger::Lane;
use crate::map::TransmitArea;
use crate::message;
use crate::receive::Ticket;
use crate::request::REPLY_BYTES;

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// Done; there is no data to return.
    Done,
    /// A read's data, to be copied.
    Data(&'a [u8]),
    /// A read whose data was put where [`Transmitter::room_for_data`] said.
    DataInPlace,
    /// It failed.
    Error(NbdError),
}

/// The transmitting end of a lane. The caller guards it with a lock if several threads answer.
///
/// Replies are *staged*, any number of them, and then sent together: [`Self::send`] commits the
/// staged bytes as one transmission, which is the moment at which their requests count as
/// answered, and hands them to the kernel.
#[derive(Debug)]
pub struct Transmitter {
    pub(crate) lane: Arc<Lane>,
    pub(crate) area: TransmitArea,
    pub(crate) epoch: u64,
    /// Number of the last committed transmission.
    pub(crate) sequence: u64,
    /// Bytes of the last one if the kernel has not taken it entirely, else 0. They must stay as
    /// they are, so what is staged meanwhile lies behind them.
    pub(crate) unfinished: u64,
    /// Bytes staged for the next one.
    pub(crate) staged: u64,
    pub(crate) tally: Tally,
    /// How long the requests of the next transmission took, as far as they were recorded.
    pub(crate) latencies: Latencies,
    /// How many requests the flight recorder has seen.
    pub(crate) recorded: u64,
}

impl Transmitter {
    /// The lane.
    pub fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// Bytes staged and not sent.
    pub fn staged(&self) -> u64 {
        self.staged
    }

    /// Whether a reply with `length` bytes of data fits beside what is staged. One always fits
    /// after a successful [`Self::send`].
    pub fn fits(&self, length: u32) -> bool {
        self.end() + REPLY_BYTES + u64::from(length) <= self.area.as_slice().len() as u64
    }

    /// Where the next reply is put.
    fn end(&self) -> u64 {
        self.unfinished + self.staged
    }

    /// Where the data of the next reply belongs, for [`Answer::DataInPlace`]. The caller may
    /// also stage another answer instead.
    ///
    /// # Panics
    ///
    /// If a reply of this length does not fit ([`Self::fits`]).
    pub fn room_for_data(&mut self, length: u32) -> &mut [u8] {
        let start = (self.end() + REPLY_BYTES) as usize;
        &mut self.area.as_mut_slice()[start..start + length as usize]
    }

    /// Adds the answer to a request to the next transmission.
    ///
    /// # Panics
    ///
    /// If the ticket is of another lane, if the answer does not suit the command (a read needs
    /// data, other commands have none), if the data has another length than the request, or if the
    /// reply does not fit ([`Self::fits`]).
    #[expect(clippy::needless_pass_by_value, reason = "answering a request consumes its ticket")]
    pub fn stage(&mut self, ticket: Ticket, answer: Answer<'_>) {
        assert!(Arc::ptr_eq(&ticket.lane, &self.lane), "a ticket of another lane");
        let request = *ticket.request();
        let (error, length) = match answer {
            Answer::Error(error) => (error, 0),
            Answer::Done => {
                assert!(request.command != CommandType::READ, "a read needs data");
                (NbdError::SUCCESS, 0)
            }
            Answer::Data(_) | Answer::DataInPlace => {
                assert!(request.command == CommandType::READ, "only a read returns data");
                (NbdError::SUCCESS, request.length)
            }
        };
        if let Answer::Data(data) = answer {
            self.room_for_data(length).copy_from_slice(data);
        }
        let reply = SimpleReply { error, cookie: request.cookie }.encode();
        let start = self.end() as usize;
        self.area.as_mut_slice()[start..start + reply.len()].copy_from_slice(&reply);
        crash_point(CrashPoint::ReplyWritten);
        // Not an answer yet: a number beyond the committed one means pending.
        ticket.lane.slot(ticket.slot).set_state(SlotState::Staged(self.sequence + 1));
        crash_point(CrashPoint::Staged);
        self.staged += REPLY_BYTES + u64::from(length);
        self.tally.add(request.command, request.length, error);
    }

    /// Commits what is staged and sends it, waiting for the kernel to take it.
    ///
    /// # Errors
    ///
    /// The error of `sendmmsg(2)`, except `Interrupted`. Nothing is lost: the next call, or a
    /// successor, continues at the byte at which the kernel stopped.
    pub fn send(&mut self) -> io::Result<()> {
        self.finish()?;
        if self.staged == 0 {
            return Ok(());
        }
        self.sequence += 1;
        self.unfinished = std::mem::take(&mut self.staged);
        // Counted before the kernel can have the reply: an onlooker that has seen the answer finds
        // it in the totals, even if this process dies right after it sent the last byte.
        self.tally.add_to(&self.lane.control().totals);
        self.latencies.add_to(&self.lane.control().latencies);
        self.send_from(0, self.unfinished)
    }

    /// Sends, byte for byte, what was committed and not sent: by the predecessor, or by a
    /// [`Self::send`] that failed. A successor calls it before anything else on the lane.
    ///
    /// # Errors
    ///
    /// As for [`Self::send`].
    pub fn finish(&mut self) -> io::Result<()> {
        if self.unfinished == 0 {
            return Ok(());
        }
        let record = self.lane.control().transmitting();
        let count = record.message.msg_len.load(Ordering::Relaxed);
        let sent = record.sent.load(Ordering::Relaxed) + u64::from(count);
        let length = self.unfinished;
        self.send_from(sent, length)?;
        // What was staged meanwhile moves to the area's beginning, where a transmission starts. It
        // is not committed, so a death in the middle of the copy loses nothing.
        let staged = length as usize..(length + self.staged) as usize;
        self.area.as_mut_slice().copy_within(staged, 0);
        Ok(())
    }

    /// Sends the transmission's bytes from `sent` on, and then frees its slots.
    fn send_from(&mut self, mut sent: u64, length: u64) -> io::Result<()> {
        let lane = Arc::clone(&self.lane);
        while sent < length {
            self.epoch += 1;
            let record = &lane.control().transmit[(self.epoch & 1) as usize];
            self.commit(record, sent, length);
            let bytes = &self.area.as_slice()[sent as usize..length as usize];
            match message::send(lane.socket(), &record.message, bytes) {
                Ok(count) => sent += u64::from(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            crash_point(CrashPoint::Sent);
        }
        self.unfinished = 0;
        // Only now: a slot that is reused earlier would lose the request of an unsent reply, which
        // the audit of a successor needs.
        lane.complete.store(self.sequence, Ordering::Release);
        Ok(())
    }

    /// Fills in the scratch record of the pair and makes it the valid one.
    fn commit(&self, record: &TransmitRecord, sent: u64, length: u64) {
        record.sequence.store(self.sequence, Ordering::Relaxed);
        crash_point(CrashPoint::SendBegun);
        record.length.store(length, Ordering::Relaxed);
        record.sent.store(sent, Ordering::Relaxed);
        message::reset(&record.message);
        crash_point(CrashPoint::SendFilled);
        // This store commits; all stores to the record must come before it.
        self.lane.control().transmit_epoch.store(self.epoch, Ordering::Release);
        crash_point(CrashPoint::SendCommitted);
    }
}

/// Counts of one transmission, added to the ledger's totals just before it is committed.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    requests: [u64; 5],
    errors: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Tally {
    fn add(&mut self, command: CommandType, length: u32, error: NbdError) {
        let kind = match command {
            CommandType::READ => 0,
            CommandType::WRITE => 1,
            CommandType::FLUSH => 2,
            CommandType::TRIM => 3,
            _ => 4,
        };
        self.requests[kind] += 1;
        if error != NbdError::SUCCESS {
            self.errors += 1;
        } else if kind == 0 {
            self.read_bytes += u64::from(length);
        } else if kind == 1 {
            self.written_bytes += u64::from(length);
        }
    }

    fn add_to(&mut self, totals: &Totals) {
        let counts = std::mem::take(self);
        let add = |word: &AtomicU64, count: u64| {
            // A lane has one transmitter and no other process stores here: no atomic add needed.
            if count != 0 {
                let sum = word.load(Ordering::Relaxed).wrapping_add(count);
                word.store(sum, Ordering::Relaxed);
            }
        };
        let words = [&totals.reads, &totals.writes, &totals.flushes, &totals.trims, &totals.others];
        for (word, count) in words.into_iter().zip(counts.requests) {
            add(word, count);
        }
        add(&totals.errors, counts.errors);
        add(&totals.read_bytes, counts.read_bytes);
        add(&totals.written_bytes, counts.written_bytes);
    }
}

#[cfg(test)]
mod tests;
