//! Which parts of a read have come.

use std::ops::Range;

/// The ranges that have come, in order and apart from each other.
///
/// Almost always there is one. A server that sends single bytes in a wild order costs itself more
/// than us.
#[derive(Debug, Default)]
pub(crate) struct RangeSet(Vec<Range<u64>>);

impl RangeSet {
    /// Adds a range that is not empty; `false` if some of it has come before.
    #[must_use]
    pub(crate) fn add(&mut self, range: Range<u64>) -> bool {
        let after = self.0.partition_point(|known| known.end <= range.start);
        if self.0.get(after).is_some_and(|next| next.start < range.end) {
            return false;
        }
        let touches_next = self.0.get(after).is_some_and(|next| next.start == range.end);
        let touches_last = after > 0 && self.0[after - 1].end == range.start;
        match (touches_last, touches_next) {
            (true, true) => {
                self.0[after - 1].end = self.0[after].end;
                self.0.remove(after);
            }
            (true, false) => self.0[after - 1].end = range.end,
            (false, true) => self.0[after].start = range.start,
            (false, false) => self.0.insert(after, range),
        }
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all bytes up to `length` have come.
    pub(crate) fn is_whole(&self, length: u64) -> bool {
        self.0.first() == Some(&(0..length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_make_a_whole() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut coverage = RangeSet::default();
            for (count, piece) in order.into_iter().enumerate() {
                assert!(!coverage.is_whole(30), "after {count} of {order:?}");
                assert!(coverage.add(piece * 10..piece * 10 + 10), "{order:?}");
            }
            assert!(coverage.is_whole(30), "{order:?}");
        }
    }

    #[test]
    fn what_has_come_before_is_refused() {
        let mut coverage = RangeSet::default();
        assert!(coverage.add(10..20) && coverage.add(30..40));
        for twice in [10..20, 5..11, 19..25, 12..13, 0..100, 25..31, 39..40, 5..35] {
            assert!(!coverage.add(twice.clone()), "{twice:?}");
        }
        assert!(coverage.add(20..30) && coverage.add(0..10) && coverage.is_whole(40));
    }
}
