//! `struct nbdkit_extents`: what a plugin's `extents` fills in.

use nbd_backend::Extent;

use crate::abi;

/// Most extents of one answer. What is beyond that is asked for again by the client.
const MAX_EXTENTS: usize = 1 << 16;

/// Extents of a range, in order and without gaps.
#[derive(Debug, Default)]
pub(crate) struct ExtentList {
    start: u64,
    end: u64,
    /// Where the next one must begin, when one has been added.
    next: Option<u64>,
    extents: Vec<(u64, u32)>,
}

/// Why an extent cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddError {
    #[error("extents must be added in ascending order and must be contiguous")]
    NotContiguous,
    #[error("first extent must not be > start ({0})")]
    AfterStart(u64),
    #[error("the extent ends beyond what 64 bits can tell")]
    Overflow,
}

impl ExtentList {
    pub(crate) fn new(start: u64, end: u64) -> Self {
        Self { start, end, ..Self::default() }
    }

    /// Adds one. What lies outside the range is cut off.
    pub(crate) fn add(&mut self, offset: u64, length: u64, kind: u32) -> Result<(), AddError> {
        if self.next.is_some_and(|next| next != offset) {
            return Err(AddError::NotContiguous);
        }
        let end = offset.checked_add(length).ok_or(AddError::Overflow)?;
        self.next = Some(end);
        let (begin, end) = (offset.max(self.start), end.min(self.end));
        if begin >= end {
            return Ok(());
        }
        if self.extents.is_empty() && offset > self.start {
            return Err(AddError::AfterStart(self.start));
        }
        let is_full = self.extents.len() >= MAX_EXTENTS;
        match self.extents.last_mut() {
            Some((length, last)) if *last == kind => *length += end - begin,
            // What follows is not taken either: it would not be contiguous.
            _ if is_full => self.end = begin,
            _ => self.extents.push((end - begin, kind)),
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.extents.len()
    }

    /// The answer to a client.
    pub(crate) fn into_extents(self) -> Vec<Extent> {
        let extent = |(length, kind)| Extent {
            length,
            hole: kind & abi::EXTENT_HOLE != 0,
            zero: kind & abi::EXTENT_ZERO != 0,
        };
        self.extents.into_iter().map(extent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_to_the_range_and_joined() {
        let mut list = ExtentList::new(100, 200);
        list.add(0, 50, 0).unwrap();
        list.add(50, 70, 3).unwrap();
        list.add(120, 0, 0).unwrap();
        list.add(120, 30, 3).unwrap();
        list.add(150, 1000, 0).unwrap();
        list.add(1150, 10, 3).unwrap();
        let lengths: Vec<_> =
            list.into_extents().iter().map(|e| (e.length, e.hole, e.zero)).collect();
        assert_eq!(lengths, [(50, true, true), (50, false, false)]);
    }

    #[test]
    fn gaps_and_overflows_are_refused() {
        let mut list = ExtentList::new(100, 200);
        assert_eq!(list.add(101, 10, 0), Err(AddError::AfterStart(100)));
        let mut list = ExtentList::new(100, 200);
        list.add(100, 10, 0).unwrap();
        assert_eq!(list.add(111, 10, 0), Err(AddError::NotContiguous));
        assert_eq!(ExtentList::new(0, 9).add(1, u64::MAX, 0), Err(AddError::Overflow));
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn a_full_list_stays_contiguous() {
        let mut list = ExtentList::new(0, 1 << 20);
        for at in 0..1 << 17 {
            list.add(at, 1, (at % 2) as u32).unwrap();
        }
        assert_eq!(list.into_extents().iter().map(|e| e.length).sum::<u64>(), 1 << 16);
    }
}
