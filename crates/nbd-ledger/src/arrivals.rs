//! Since when requests wait: how far a lane's stream had come at some moments.
//!
//! A backend notes when it *takes* a request. A stopped backend takes none, and a dead one neither,
//! so the holder looks from time to time how many bytes have come and notes a [`Mark`]: all that
//! lies before the mark had come by then. The marks that unanswered requests need are few; a copy of
//! them lies in the lane's control page, where the next holder finds them.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use crate::inspect::Inspector;
use crate::layout::{LaneControl, MARKS};

/// More requests than that are never in flight on a lane.
const MAX_MARKS: usize = 1024;

/// What was seen at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Stream position behind the last byte that had come.
    pub end: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub at: u64,
}

/// The marks of a lane, oldest first.
#[derive(Debug, Default)]
pub struct Arrivals {
    marks: Vec<Mark>,
    /// Stream position behind the last byte that was noted, though its mark may be gone.
    end: u64,
    /// What the control page says.
    written: [Mark; MARKS],
}

impl Arrivals {
    /// What the holder before has left. The backend could have scribbled over it: a mark that is
    /// not behind the one before, or lies in the future (after `now`), ends the list.
    #[must_use]
    pub fn left(inspector: &Inspector, lane: u32, now: u64) -> Self {
        let mut arrivals = Self { written: inspector.marks(lane), ..Self::default() };
        for mark in arrivals.written {
            let before = arrivals.marks.last().map_or(0, |before| before.at);
            if mark.end <= arrivals.end || mark.at < before || mark.at > now {
                break;
            }
            arrivals.end = mark.end;
            arrivals.marks.push(mark);
        }
        arrivals
    }

    /// Notes that all before `end` had come at `now`; true if some of it is new.
    pub fn note(&mut self, end: u64, now: u64) -> bool {
        // Bytes on their way from the socket to the ledger are in neither, so it can go back a little.
        let is_new = end > self.end;
        if is_new {
            self.end = end;
            // A ledger that was scribbled over can claim that bytes come for ever.
            self.marks.truncate(MAX_MARKS - 1);
            self.marks.push(Mark { end, at: now });
        }
        is_new
    }

    /// Keeps only what the requests at these stream positions need, and what lies beyond `taken`. So
    /// there are never more marks than requests in flight.
    pub fn keep(&mut self, unanswered: &[u64], taken: u64) {
        let mut start = 0;
        self.marks.retain(|mark| {
            let range = std::mem::replace(&mut start, mark.end)..mark.end;
            mark.end > taken || unanswered.iter().any(|position| range.contains(position))
        });
    }

    /// When the request at a stream position was known to have come.
    #[must_use]
    pub fn at(&self, position: u64) -> Option<u64> {
        let next = self.marks.partition_point(|mark| mark.end <= position);
        self.marks.get(next).map(|mark| mark.at)
    }

    /// Leaves the marks for the next holder: the oldest, which matter most, and the latest, so that no
    /// request looks older than it is.
    ///
    /// # Errors
    /// The ledger cannot be written to.
    pub fn write(&mut self, inspector: &Inspector, lane: u32) -> io::Result<()> {
        let mut marks = [Mark::default(); MARKS];
        for (place, mark) in marks.iter_mut().zip(&self.marks) {
            *place = *mark;
        }
        if let (Some(place), Some(latest)) = (marks.last_mut(), self.marks.last())
            && self.marks.len() > MARKS
        {
            *place = *latest;
        }
        if marks != self.written {
            inspector.write_marks(lane, &marks)?;
            self.written = marks;
        }
        Ok(())
    }
}

impl Inspector {
    fn marks(&self, lane: u32) -> [Mark; MARKS] {
        let words = &self.map.lane(lane).marks;
        std::array::from_fn(|index| Mark {
            end: words[2 * index].load(Ordering::Relaxed),
            at: words[2 * index + 1].load(Ordering::Relaxed),
        })
    }

    /// The mapping is for reading only, so that a fault of the holder's cannot harm the ledger.
    fn write_marks(&self, lane: u32, marks: &[Mark; MARKS]) -> io::Result<()> {
        let bytes: Vec<u8> =
            marks.iter().flat_map(|mark| [mark.end, mark.at]).flat_map(u64::to_ne_bytes).collect();
        let offset = self.map.layout().lane(lane) + std::mem::offset_of!(LaneControl, marks) as u64;
        self.file().write_all_at(&bytes, offset)
    }
}

#[cfg(test)]
mod tests;
