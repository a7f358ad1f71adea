//! Which moments of a recording, and what of the unflushed writes had reached the disk by then.

use std::fmt;
use std::str::FromStr;

use crate::layers::write_log::{Entry, EntryKind};
use crate::prng;

/// The unit that a disk writes as a whole.
pub(crate) const SECTOR: u64 = 512;

/// The disk after so many entries. Choice 0 is without all that was not flushed, choice 1 with all
/// of it; the others are random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CrashImage {
    pub(crate) point: usize,
    pub(crate) choice: u32,
}

impl fmt::Display for CrashImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.point, self.choice)
    }
}

impl FromStr for CrashImage {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text
            .split_once('.')
            .and_then(|(point, choice)| Some((point.parse().ok()?, choice.parse().ok()?)));
        let (point, choice) = parsed.ok_or("write it as the report shows it, like 17.3")?;
        Ok(Self { point, choice })
    }
}

/// Which moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Points {
    All,
    /// Before a flush most is uncertain; after it, nothing is.
    Flushes,
    Random(usize),
}

impl FromStr for Points {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            "flushes" => Ok(Self::Flushes),
            number => match number.parse() {
                Ok(number @ 1..) => Ok(Self::Random(number)),
                _ => Err("write all, flushes or a number"),
            },
        }
    }
}

/// How crash images are chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) subsets: u32,
    pub(crate) torn: bool,
    pub(crate) seed: u64,
}

impl Plan {
    pub(crate) fn crash_images(&self, entries: &[Entry], points: Points) -> Vec<CrashImage> {
        let all = 0..=entries.len();
        let is_barrier = |index: usize| {
            entries.get(index).is_some_and(|entry| entry.fua || entry.kind == EntryKind::Flush)
        };
        let mut points: Vec<usize> = match points {
            Points::All => all.collect(),
            Points::Flushes => all
                .filter(|&point| {
                    point == entries.len()
                        || is_barrier(point)
                        || point > 0 && is_barrier(point - 1)
                })
                .collect(),
            Points::Random(number) => {
                let pick = |index| {
                    let mixed = prng::mix(&[self.seed, u64::MAX, index]);
                    (mixed % (entries.len() as u64 + 1)) as usize
                };
                (0..number as u64).map(pick).collect()
            }
        };
        points.sort_unstable();
        points.dedup();
        points.into_iter().flat_map(|point| self.choices(entries, point)).collect()
    }

    /// Where nothing is uncertain, there is only one image.
    fn choices(&self, entries: &[Entry], point: usize) -> impl Iterator<Item = CrashImage> + use<> {
        let certain = certain(entries, point);
        let is_uncertain = |entry: &Entry| entry.kind != EntryKind::Flush && !entry.fua;
        let uncertain = entries[certain..point].iter().filter(|entry| is_uncertain(entry)).count();
        let count = match uncertain {
            0 => 1,
            1 if !self.torn => 2,
            _ => 2 + self.subsets,
        };
        (0..count).map(move |choice| CrashImage { point, choice })
    }

    /// Whether a sector of an entry had reached the disk.
    pub(crate) fn has(
        &self,
        crash_image: CrashImage,
        index: usize,
        entry: &Entry,
        sector: u64,
    ) -> bool {
        match (crash_image.choice, entry.fua) {
            (_, true) | (1, _) => true,
            (0, _) => false,
            (choice, _) => {
                let sector = if self.torn { sector } else { 0 };
                let what =
                    [self.seed, crash_image.point as u64, u64::from(choice), index as u64, sector];
                prng::mix(&what) & 1 == 1
            }
        }
    }
}

/// How many entries are certainly on the disk after `point` of them, all before that number.
pub(crate) fn certain(entries: &[Entry], point: usize) -> usize {
    let flushes = entries[..point].iter().filter(|entry| entry.kind == EntryKind::Flush);
    let covered = flushes.map(|flush| usize::try_from(flush.offset).unwrap_or(usize::MAX)).max();
    covered.unwrap_or(0).min(point)
}
