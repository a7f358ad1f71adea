//! A diff against a model, through deaths of the process and of the machine.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use nbd_backend::{Backend, Capabilities, Geometry, MappedBackend, ZeroOptions};
use proptest::prelude::*;

use super::diff_file::first;
use super::format::Layout;
use super::map::Map;
use super::overlay::{Overlay, diff_storage};
use super::*;
use crate::export::open::open;
use crate::export::plan::ShapeHint;
use crate::offline::commit;
use crate::spec::{CowSpec, Spec};
use crate::testing::{Directory, serve};

const SECTOR: usize = 512;
/// Not a multiple of a cluster: the last one is a short one.
const SIZE: usize = 64 * 4096 + 1536;
const PAGE: usize = 4096;
/// As long as what is lent of files on disks has to be.
const LENT: usize = 32 << 10;

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: usize,
        sectors: usize,
        fua: bool,
    },
    Zero {
        at: usize,
        sectors: usize,
        no_hole: bool,
    },
    Trim {
        at: usize,
        sectors: usize,
    },
    Flush,
    /// The process dies.
    Kill,
    /// The machine dies; the number decides which pages the kernel had written.
    Power(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..SIZE / SECTOR;
    let sectors = prop_oneof![1usize..8, 1usize..40];
    prop_oneof![
        6 => (at.clone(), sectors.clone(), prop::bool::weighted(0.1))
            .prop_map(|(at, sectors, fua)| Step::Write { at, sectors, fua }),
        2 => (at.clone(), sectors.clone(), any::<bool>())
            .prop_map(|(at, sectors, no_hole)| Step::Zero { at, sectors, no_hole }),
        1 => (at, sectors).prop_map(|(at, sectors)| Step::Trim { at, sectors }),
        2 => Just(Step::Flush),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::Power),
    ]
}

/// What each sector may hold: the content that is durable, and all that came since, newest last.
type Model = Vec<Vec<[u8; SECTOR]>>;

/// An overlay on files, and what each of its sectors may hold after the next death.
struct ModelledOverlay {
    directory: Directory,
    model: Model,
    /// The file of the diff when it was last flushed.
    flushed: Vec<u8>,
    overlay: Option<Overlay>,
    counter: u64,
}

impl ModelledOverlay {
    fn new() -> Self {
        let directory = Directory::new();
        let base: Vec<u8> = (0..SIZE).map(|at| (at / SECTOR) as u8 ^ 0x5a).collect();
        fs::write(directory.path("base"), &base).unwrap();
        let model = base.chunks(SECTOR).map(|sector| vec![sector.try_into().unwrap()]).collect();
        let mut overlay_state =
            Self { directory, model, flushed: Vec::new(), overlay: None, counter: 0 };
        overlay_state.open();
        overlay_state.flushed = overlay_state.file();
        overlay_state
    }

    fn open(&mut self) {
        let path = self.directory.path("diff");
        let base = serve(&format!("file:{},ro", self.directory.path("base").display()));
        let map = Map::open(first(&path, SIZE as u64, false).unwrap()).unwrap();
        let geometry =
            Geometry { size: SIZE as u64, block_size: 512, capabilities: Capabilities::default() };
        self.overlay = Some(Overlay::new(Arc::new(base), path, map, geometry).unwrap());
    }

    fn overlay(&self) -> &Overlay {
        self.overlay.as_ref().unwrap()
    }

    fn file(&self) -> Vec<u8> {
        fs::read(self.directory.path("diff")).unwrap()
    }

    fn note(&mut self, at: usize, data: &[u8]) {
        for (sector, data) in self.model[at..].iter_mut().zip(data.chunks(SECTOR)) {
            sector.push(data.try_into().unwrap());
        }
    }

    fn note_flush(&mut self) {
        for sector in &mut self.model {
            sector.drain(..sector.len() - 1);
        }
        self.flushed = self.file();
    }

    fn run(&mut self, step: &Step) {
        let fit = |at: usize, sectors: usize| sectors.min(SIZE / SECTOR - at) * SECTOR;
        match *step {
            Step::Write { at, sectors, fua } => {
                self.counter += 1;
                let data = self.counter.to_le_bytes().repeat(fit(at, sectors) / 8);
                self.overlay().write_at(&data, (at * SECTOR) as u64, fua).unwrap();
                self.note(at, &data);
                if fua {
                    self.note_flush();
                }
            }
            Step::Zero { at, sectors, no_hole } => {
                let length = fit(at, sectors);
                let how = ZeroOptions { no_hole, ..ZeroOptions::default() };
                self.overlay().write_zeroes((at * SECTOR) as u64, length as u64, how).unwrap();
                self.note(at, &vec![0; length]);
            }
            Step::Trim { at, sectors } => {
                let length = fit(at, sectors);
                self.overlay().trim((at * SECTOR) as u64, length as u64, false).unwrap();
                // It may read as anything, so it reads as what it reads as.
                let mut data = vec![0; length];
                self.overlay().read_at(&mut data, (at * SECTOR) as u64).unwrap();
                self.note(at, &data);
            }
            Step::Flush => {
                self.overlay().flush().unwrap();
                self.note_flush();
            }
            Step::Kill => {
                self.overlay = None;
                self.open();
            }
            Step::Power(seed) => self.cut_power(seed),
        }
    }

    /// Any page of the file is what it was at the last flush, or what it is now; and the boot is
    /// another one.
    fn cut_power(&mut self, seed: u64) {
        self.overlay = None;
        let mut file = self.file();
        let pages = file.chunks_mut(PAGE).zip(self.flushed.chunks(PAGE));
        for (index, (now, then)) in pages.enumerate() {
            if crate::prng::mix(&[seed, index as u64]) & 1 == 0 {
                now.copy_from_slice(then);
            }
        }
        file[512..516].copy_from_slice(b"past");
        fs::write(self.directory.path("diff"), &file).unwrap();
        self.open();
        // What came through is what it is from now on.
        let mut data = vec![0; SIZE];
        self.overlay().read_at(&mut data, 0).unwrap();
        for (number, (sector, found)) in self.model.iter_mut().zip(data.chunks(SECTOR)).enumerate()
        {
            let possible = sector.iter().any(|content| content == found);
            assert!(possible, "sector {number} holds what was never written to it");
            *sector = vec![found.try_into().unwrap()];
        }
        self.flushed = self.file();
    }

    fn check(&self) {
        let mut data = vec![0; SIZE];
        self.overlay().read_at(&mut data, 0).unwrap();
        for (number, (sector, found)) in self.model.iter().zip(data.chunks(SECTOR)).enumerate() {
            assert_eq!(sector.last().unwrap(), found, "sector {number}");
        }
        for at in (0..SIZE - LENT).step_by(PAGE) {
            // What is half of the one and half of the other is never lent.
            if let Some(mapped_range) = self.overlay().mapped_range(at as u64, LENT as u32) {
                let mut lent = vec![0; LENT];
                mapped_range.read(&mut lent).unwrap();
                assert!(lent == data[at..at + LENT], "lent at {at}");
            }
        }
        let length = SIZE as u64;
        let extents = self.overlay().extents(0, length, false).unwrap();
        assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), length);
        let mut at = 0;
        for extent in extents {
            let end = at + extent.length as usize;
            assert!(!extent.zero || data[at..end].iter().all(|byte| *byte == 0), "at {at}");
            at = end;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_diff_survives_the_process_and_the_machine(steps in prop::collection::vec(step(), 1..30)) {
        let mut overlay_state = ModelledOverlay::new();
        for step in &steps {
            overlay_state.run(step);
            overlay_state.check();
        }
        // The base is as it was.
        let base = fs::read(overlay_state.directory.path("base")).unwrap();
        prop_assert!(base.iter().enumerate().all(|(at, byte)| *byte == (at / SECTOR) as u8 ^ 0x5a));
    }

    #[test]
    fn a_commit_makes_the_base_what_the_device_was(steps in prop::collection::vec(step(), 1..12)) {
        let mut overlay_state = ModelledOverlay::new();
        steps.iter().for_each(|step| overlay_state.run(step));
        overlay_state.overlay = None;
        let (base, diff) = (overlay_state.directory.path("base"), overlay_state.directory.path("diff"));
        commit::commit(spec(&base, &diff)).unwrap();
        let committed = fs::read(&base).unwrap();
        for (sector, found) in overlay_state.model.iter().zip(committed.chunks(SECTOR)) {
            prop_assert_eq!(sector.last().unwrap(), found);
        }
        prop_assert_eq!(fs::metadata(&diff).unwrap().len(), 0);
        overlay_state.open();
        overlay_state.check();
    }
}

/// While a flush is under way, the bits that it writes may be on the disk or not; the data that
/// they stand for is there.
#[test]
fn a_flush_may_be_cut_short() {
    let mut overlay_state = ModelledOverlay::new();
    for number in 0..60 {
        overlay_state.run(&Step::Write { at: number * 8 + 1, sectors: 3, fua: false });
    }
    let begun = overlay_state.file();
    overlay_state.overlay().flush().unwrap();
    let ended = overlay_state.file();
    let layout = Layout::of(SIZE as u64);
    // Torn in every place: the map is written in words, and words are written whole.
    for words in 0..=2 {
        let mut file = begun.clone();
        let end = layout.durable as usize + 8 * words;
        file[layout.durable as usize..end].copy_from_slice(&ended[layout.durable as usize..end]);
        overlay_state.flushed = file.clone();
        let model = overlay_state.model.clone();
        fs::write(overlay_state.directory.path("diff"), &file).unwrap();
        overlay_state.cut_power(0);
        overlay_state.model = model;
    }
}

fn spec(base: &Path, diff: &Path) -> CowSpec {
    let text = format!("cow:{}+{}", base.display(), diff.display());
    match Spec::parse(text.as_ref()) {
        Ok(Spec::Cow(cow)) => *cow,
        other => panic!("{other:?}"),
    }
}

fn complaint(error: &dyn std::error::Error) -> String {
    nbd_backend::chain(error)
}

#[test]
fn what_is_no_diff_is_left_alone() {
    let directory = Directory::new();
    let base = directory.file("base", 1 << 20);
    let other = directory.file("other", 1 << 20);
    let error = open(Spec::Cow(spec(&base, &other).into()), ShapeHint::Nothing).unwrap_err();
    assert!(complaint(&error).contains("other: is not a diff of nbd-serve"), "{error}");
    let error = commit::discard(&other).unwrap_err();
    assert!(complaint(&error).contains("is not a diff"), "{error}");
    assert_eq!(fs::read(&other).unwrap(), vec![0; 1 << 20]);
    for path in [directory.path("none"), directory.file("empty", 0)] {
        let error = commit::commit(spec(&base, &path)).unwrap_err();
        assert!(complaint(&error).contains("nothing to commit"), "{error}");
    }
    assert!(!directory.path("none").exists());
}

#[test]
fn a_base_may_grow_and_must_not_shrink() {
    let directory = Directory::new();
    let base = directory.file("base", 1 << 20);
    let diff = directory.path("diff");
    drop(first(&diff, 1 << 20, false).unwrap());
    File::options().write(true).open(&base).unwrap().set_len(2 << 20).unwrap();
    assert_eq!(
        open(Spec::Cow(spec(&base, &diff).into()), ShapeHint::Nothing).unwrap().geometry().size,
        1 << 20
    );
    File::options().write(true).open(&base).unwrap().set_len(4096).unwrap();
    let error = open(Spec::Cow(spec(&base, &diff).into()), ShapeHint::Nothing).unwrap_err();
    assert!(complaint(&error).contains("belongs to a base of 1M, and this base has only 4K"));
}

#[test]
fn a_served_diff_is_neither_committed_nor_discarded() {
    let directory = Directory::new();
    let base = directory.file("base", 1 << 20);
    let diff = directory.path("diff");
    let served = first(&diff, 1 << 20, false).unwrap();
    for error in [commit::commit(spec(&base, &diff)).map(drop), commit::discard(&diff)] {
        assert!(complaint(&error.unwrap_err()).contains("is in use by"));
    }
    drop(served);
    commit::discard(&diff).unwrap();
}

/// Whoever made it died before it had its length.
#[test]
fn a_diff_that_is_half_made_is_finished() {
    let directory = Directory::new();
    let path = directory.path("diff");
    let file = File::create_new(&path).unwrap();
    format::write(&file, &Layout::of(1 << 20)).unwrap();
    drop(file);
    first(&path, 1 << 20, false).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), Layout::of(1 << 20).end());
}

#[test]
fn writers_of_one_cluster_do_not_lose_each_others_data() {
    let overlay_state = ModelledOverlay::new();
    let overlay = overlay_state.overlay();
    for cluster in 0..32u64 {
        std::thread::scope(|scope| {
            for part in 0..8u64 {
                let data = [part as u8 + 1; SECTOR];
                scope.spawn(move || {
                    overlay.write_at(&data, cluster * 4096 + part * SECTOR as u64, false).unwrap();
                });
            }
        });
    }
    let mut data = vec![0; 32 * 4096];
    overlay.read_at(&mut data, 0).unwrap();
    let expected = |at: usize| (at / SECTOR % 8) as u8 + 1;
    assert!(data.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
}

/// Neither by those who ask for what is where, nor by a commit, which would write the zeroes to the
/// base.
#[test]
fn what_was_cut_off_of_base_or_diff_is_not_called_zero() {
    for cut in ["base", "diff"] {
        let overlay_state = ModelledOverlay::new();
        let overlay = overlay_state.overlay();
        let (length, size) = (8192, SIZE as u64);
        let offset = size - length;
        if cut == "diff" {
            overlay.write_at(&[3; 8192], offset, false).unwrap();
        }
        overlay.extents(offset, length, false).unwrap();
        let mut options = File::options();
        let file = options.read(true).write(true).open(overlay_state.directory.path(cut)).unwrap();
        let start = if cut == "diff" { format::read(&file).unwrap().data } else { 0 };
        file.set_len(start + offset).unwrap();
        let error = overlay.extents(offset, length, false).unwrap_err().to_string();
        assert!(error.contains("was truncated while it was served"), "{error}");
        overlay.read_at(&mut [0; 4096], offset).unwrap_err();
        // What is in front of it is told.
        let extents = overlay.extents(0, size, false).unwrap();
        assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), offset);
    }
}

#[test]
fn a_diff_that_was_cut_off_is_not_committed_as_zeroes() {
    let directory = Directory::new();
    let (base, diff) = (directory.file("base", 1 << 20), directory.path("diff"));
    fs::write(&base, vec![7; 1 << 20]).unwrap();
    let file = first(&diff, 1 << 20, false).unwrap();
    let map = Map::open(file).unwrap();
    let data = map.layout().data;
    let storage = diff_storage(map.file().try_clone().unwrap(), diff.clone(), map.layout());
    storage.write_at(&[8; 65536], data, false).unwrap();
    map.allocating().set(0, 65536).unwrap();
    map.flush().unwrap();
    drop((map, storage));
    File::options().write(true).open(&diff).unwrap().set_len(data + 4096).unwrap();
    let error = commit::commit(spec(&base, &diff)).unwrap_err();
    assert!(complaint(&error).contains("was truncated while it was served"), "{error:?}");
    // Nothing was made zero, and the diff is still there.
    let content = fs::read(&base).unwrap();
    assert!(content.iter().all(|byte| matches!(byte, 7 | 8)));
    assert!(fs::metadata(&diff).unwrap().len() > 0);
}
