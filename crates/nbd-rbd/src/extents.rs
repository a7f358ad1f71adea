//! What is allocated, from the objects that exist.

use nbd_backend::Extent;

/// Extents from the allocated ranges of an image, which come in order and may reach beyond what was asked.
#[derive(Debug)]
pub(crate) struct ExtentList {
    at: u64,
    end: u64,
    extents: Vec<Extent>,
}

impl ExtentList {
    pub(crate) fn new(offset: u64, length: u64) -> Self {
        Self { at: offset, end: offset + length, extents: Vec::new() }
    }

    /// A range is allocated.
    pub(crate) fn allocated(&mut self, offset: u64, length: u64) {
        let (start, end) = (offset.max(self.at), offset.saturating_add(length).min(self.end));
        if start < end {
            self.push(start, true);
            self.push(end, false);
        }
    }

    /// All of it, or only the first.
    pub(crate) fn finish(mut self, one: bool) -> Vec<Extent> {
        self.push(self.end, true);
        if one {
            self.extents.truncate(1);
        }
        self.extents
    }

    /// The range from where the last one ended up to here.
    fn push(&mut self, end: u64, hole: bool) {
        let length = end - self.at;
        self.at = end;
        match self.extents.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.hole == hole => last.length += length,
            _ => self.extents.push(Extent { length, hole, zero: hole }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn extents(ranges: &[(u64, u64)], one: bool) -> Vec<(u64, bool)> {
        let mut list = ExtentList::new(2 * MIB, 10 * MIB);
        ranges.iter().for_each(|(offset, length)| list.allocated(offset * MIB, length * MIB));
        list.finish(one).into_iter().map(|extent| (extent.length / MIB, extent.hole)).collect()
    }

    #[test]
    fn what_is_not_allocated_is_a_hole() {
        assert_eq!(extents(&[], false), [(10, true)]);
        assert_eq!(extents(&[(4, 4)], false), [(2, true), (4, false), (4, true)]);
        assert_eq!(extents(&[(4, 4)], true), [(2, true)]);
    }

    #[test]
    fn ranges_are_cut_and_joined() {
        assert_eq!(extents(&[(0, 4), (4, 4), (8, 100)], false), [(10, false)]);
        assert_eq!(extents(&[(0, 2), (12, 4)], false), [(10, true)]);
        // A library that tells of a range twice does not confuse it.
        assert_eq!(extents(&[(2, 4), (2, 4), (0, 3)], false), [(4, false), (6, true)]);
    }
}
