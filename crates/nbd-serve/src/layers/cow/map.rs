//! Which clusters are in the diff.
//!
//! A cluster is in the diff once its bit is set, and its bit is set after its data was written. A
//! process may die in between and nothing is wrong; but when the *machine* dies, the kernel may
//! have written the bit to the disk and not yet the data. So there are two maps. The *durable* one
//! gets a bit only when the data has been flushed, and is all that counts after the machine was
//! restarted. The *recent* one has every bit at once, and counts as long as the boot lasts in
//! which it was written: until then the page cache is what everybody reads.
//!
//! Bits are only ever set. So a half-written map is one with fewer bits, and a bit of the durable
//! map stands for data that was durable before it, whatever else is lost.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::CowError;
use super::format::{self, CLUSTER, Layout};
use crate::storage::extents;

/// The maps of an open diff.
#[derive(Debug)]
pub(crate) struct Map {
    file: File,
    layout: Layout,
    /// The recent map, 64 clusters a word.
    words: Vec<AtomicU64>,
    /// Words whose bits are not all durable.
    dirty: Mutex<BTreeSet<usize>>,
    /// Whoever sets bits, or writes what must not be seen before they are set.
    allocating: Mutex<()>,
    /// A flush must not be answered while another one still writes the bits that it has taken.
    flushing: Mutex<()>,
}

/// The right to set bits.
pub(crate) struct Allocating<'a> {
    map: &'a Map,
    _guard: MutexGuard<'a, ()>,
}

impl Map {
    /// Opens the maps for writing.
    pub(crate) fn open(file: File) -> Result<Self, CowError> {
        let boot = format::this_boot().map_err(CowError::Boot)?;
        let layout = format::read(&file)?;
        if format::boot(&file).map_err(CowError::Access)? != boot {
            forget_recent(&file, &layout).map_err(CowError::Access)?;
            format::set_boot(&file, &boot).map_err(CowError::Access)?;
        }
        Self::load(file, layout, layout.recent)
    }

    /// Opens the maps without changing anything.
    pub(crate) fn look(file: File) -> Result<Self, CowError> {
        let boot = format::this_boot().map_err(CowError::Boot)?;
        let layout = format::read(&file)?;
        let same = format::boot(&file).map_err(CowError::Access)? == boot;
        Self::load(file, layout, if same { layout.recent } else { layout.durable })
    }

    fn load(file: File, layout: Layout, from: u64) -> Result<Self, CowError> {
        let load = |from| words(&file, from, layout.map()).map_err(CowError::Access);
        let (recent, durable) = (load(from)?, load(layout.durable)?);
        let differs = |index: &usize| recent[*index] != durable[*index];
        let dirty = (0..recent.len()).filter(differs).collect();
        Ok(Self {
            words: recent.into_iter().map(AtomicU64::new).collect(),
            dirty: Mutex::new(dirty),
            allocating: Mutex::new(()),
            flushing: Mutex::new(()),
            file,
            layout,
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn has(&self, cluster: u64) -> bool {
        let word = self.words[(cluster / 64) as usize].load(Ordering::Acquire);
        word >> (cluster % 64) & 1 == 1
    }

    /// Where the state of a range changes first, and whether the part before that is in the diff.
    pub(crate) fn run(&self, start: u64, end: u64) -> (u64, bool) {
        let first = start / CLUSTER;
        let is_own = self.has(first);
        let mut cluster = first + 1;
        while cluster * CLUSTER < end && self.has(cluster) == is_own {
            cluster += 1;
        }
        ((cluster * CLUSTER).min(end), is_own)
    }

    /// Does something with each part of a range that is in the diff or not.
    pub(crate) fn runs<E>(
        &self,
        mut start: u64,
        end: u64,
        mut what: impl FnMut(u64, u64, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        while start < end {
            let (next, is_own) = self.run(start, end);
            what(start, next, is_own)?;
            start = next;
        }
        Ok(())
    }

    /// Whether all of a range is in the diff.
    pub(crate) fn covers(&self, start: u64, end: u64) -> bool {
        start >= end || self.run(start, end) == (end, true)
    }

    pub(crate) fn allocating(&self) -> Allocating<'_> {
        Allocating { map: self, _guard: lock(&self.allocating) }
    }

    /// Makes everything durable that was written, and then the bits that say so.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let _flushing = lock(&self.flushing);
        let indices = std::mem::take(&mut *lock(&self.dirty));
        // As they are before the data is flushed: what is set later may stand for data that this
        // flush does not cover.
        let words: Vec<(usize, u64)> = indices
            .iter()
            .map(|&index| (index, self.words[index].load(Ordering::Acquire)))
            .collect();
        let flushed = self.file.sync_data().and_then(|()| {
            if words.is_empty() {
                return Ok(());
            }
            write_words(&self.file, self.layout.durable, &words)?;
            self.file.sync_data()
        });
        if flushed.is_err() {
            lock(&self.dirty).extend(indices);
        }
        flushed
    }
}

impl Allocating<'_> {
    /// Sets the bits of whole clusters whose data was written.
    pub(crate) fn set(&self, start: u64, end: u64) -> io::Result<()> {
        let (first, last) = (start / CLUSTER, end.div_ceil(CLUSTER));
        let mut changed = Vec::new();
        let mut cluster = first;
        while cluster < last {
            let index = (cluster / 64) as usize;
            let next = (cluster / 64 * 64 + 64).min(last);
            let ones = u64::MAX >> (64 - (next - cluster)) << (cluster % 64);
            let old = self.map.words[index].load(Ordering::Relaxed);
            if old | ones != old {
                changed.push((index, old | ones));
            }
            cluster = next;
        }
        // A successor must find what was answered; and nobody may rely on what it would not find.
        write_words(&self.map.file, self.map.layout.recent, &changed)?;
        let mut dirty = lock(&self.map.dirty);
        for (index, word) in changed {
            self.map.words[index].store(word, Ordering::Release);
            dirty.insert(index);
        }
        Ok(())
    }
}

/// After a restart of the machine, only what is durable counts.
fn forget_recent(file: &File, layout: &Layout) -> io::Result<()> {
    let durable = words(file, layout.durable, layout.map())?;
    let recent = words(file, layout.recent, layout.map())?;
    let changed: Vec<_> = durable
        .into_iter()
        .enumerate()
        .zip(recent)
        .filter(|((_, durable), recent)| durable != recent)
        .map(|(word, _)| word)
        .collect();
    write_words(file, layout.recent, &changed)
}

/// Writes words to a map, neighbours together.
fn write_words(file: &File, map: u64, words: &[(usize, u64)]) -> io::Result<()> {
    for run in words.chunk_by(|one, other| one.0 + 1 == other.0) {
        let bytes: Vec<u8> = run.iter().flat_map(|(_, word)| word.to_le_bytes()).collect();
        file.write_all_at(&bytes, map + 8 * run[0].0 as u64)?;
    }
    Ok(())
}

/// Reads a map, most of which is a hole.
fn words(file: &File, map: u64, length: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; length as usize];
    let mut start = 0;
    for extent in extents::of_file(file, map, length, usize::MAX)? {
        let end = start + extent.length;
        if !extent.zero {
            file.read_exact_at(&mut bytes[start as usize..end as usize], map + start)?;
        }
        start = end;
    }
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    Ok(bytes.chunks(8).map(word).collect())
}

/// A thread that panics takes the process along.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
