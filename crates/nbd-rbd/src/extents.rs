//! What is allocated, from the objects that exist.

use nbd_backend::Extent;

/// Extents from the allocated ranges of an image, which may reach beyond what was asked.
#[derive(Debug)]
pub(crate) struct ExtentList {
    at: u64,
    end: u64,
    extents: Vec<Extent>,
}

impl ExtentList {
    /// Of a range, from the offsets and lengths of what is allocated. An image with stripes has them in
    /// any order.
    pub(crate) fn of(offset: u64, length: u64, mut allocated: Vec<(u64, u64)>) -> Self {
        allocated.sort_unstable();
        let mut list = Self { at: offset, end: offset + length, extents: Vec::new() };
        allocated.into_iter().for_each(|(offset, length)| list.allocated(offset, length));
        list
    }

    /// A range is allocated. They come in order.
    fn allocated(&mut self, offset: u64, length: u64) {
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
        let ranges = ranges.iter().map(|(offset, length)| (offset * MIB, length * MIB)).collect();
        let list = ExtentList::of(2 * MIB, 10 * MIB, ranges);
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

    #[test]
    fn stripes_come_in_any_order() {
        let expected = [(2, false), (2, true), (4, false), (2, true)];
        assert_eq!(extents(&[(8, 2), (2, 2), (6, 2)], false), expected);
    }
}
