//! The heat line: an interval of a device is one cell, and the newest is at the right end.

use std::collections::VecDeque;

use nbd_control::status::Status;

use crate::inspect::top::rates::Rates;

/// As many as the widest terminal may show.
const MAX_CELLS: usize = 512;
/// Milliseconds below which a latency has level 0, 1, …: each is four times the one before.
const LEVEL_BOUNDS_MS: [f64; 7] = [0.032, 0.128, 0.512, 2.048, 8.192, 32.768, 131.072];

/// What an interval was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Nothing to do.
    Idle,
    /// 99 % of the requests took no longer than this level says, 0 to 7.
    Took(usize),
    /// Nothing was answered, although something waits.
    Waits,
    /// The holder did not answer.
    Silent,
}

/// The latest intervals of a device, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(VecDeque<Cell>);

impl Cell {
    pub(crate) fn of(status: &Status, rates: &Rates) -> Self {
        match rates.all.p99_ms {
            Some(time) => {
                Self::Took(LEVEL_BOUNDS_MS.iter().filter(|&&level| time >= level).count())
            }
            None if rates.requests() > 0.0 => Self::Took(0),
            None if status.in_flight.is_empty() => Self::Idle,
            None => Self::Waits,
        }
    }

    /// One character, as high as the latency.
    pub(crate) const fn symbol(self) -> char {
        match self {
            Self::Idle => '·',
            Self::Took(level) => ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][level],
            Self::Waits => '!',
            Self::Silent => '?',
        }
    }
}

impl History {
    pub(crate) fn push(&mut self, cell: Cell) {
        if self.0.len() == MAX_CELLS {
            self.0.pop_front();
        }
        self.0.push_back(cell);
    }

    /// The latest `most`, oldest first.
    pub(crate) fn latest(&self, most: usize) -> impl Iterator<Item = Cell> {
        self.0.iter().skip(self.0.len().saturating_sub(most)).copied()
    }
}

/// What the symbols mean.
pub(crate) fn legend() -> String {
    let marks = [(0, "32 µs"), (2, "512 µs"), (4, "8 ms"), (6, "131 ms")];
    let marks = marks.map(|(level, time)| format!("{} <{time}", Cell::Took(level).symbol()));
    format!("{}  {} more  · idle  ! waits", marks.join("  "), Cell::Took(7).symbol())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inspect::render::tests::{example, request};
    use crate::inspect::top::rates::tests::after_reads;

    #[test]
    fn an_interval_becomes_the_cell_of_its_latency() {
        let (before, after) = (after_reads(1), after_reads(9));
        let rates = Rates::between(&before, &after, Duration::from_secs(1)).unwrap();
        assert_eq!(Cell::of(&after, &rates), Cell::Took(3), "0.52 ms");
        let still = Rates::between(&after, &after, Duration::from_secs(1)).unwrap();
        assert_eq!(Cell::of(&after, &still), Cell::Idle);
        let mut waiting = example();
        waiting.in_flight.push(request(1));
        assert_eq!(Cell::of(&waiting, &still), Cell::Waits);
    }

    #[test]
    fn only_the_latest_are_kept() {
        let mut history = History::default();
        (0..2 * MAX_CELLS).for_each(|n| history.push(Cell::Took(n % 8)));
        assert_eq!(history.latest(3).collect::<Vec<_>>(), [5, 6, 7].map(Cell::Took));
        assert_eq!(history.latest(usize::MAX).count(), MAX_CELLS);
    }
}
