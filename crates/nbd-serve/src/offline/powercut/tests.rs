use super::*;
use crate::layers::write_log::{EntryKind, Log};
use crate::testing::Directory;

const SIZE: u64 = 1 << 20;

/// A log of writes of sectors, each full of its own number, and flushes.
fn log(directory: &Directory, what: &[What]) -> Reader {
    let open = || {
        let path = directory.path("log");
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    };
    let mut log = Log::resume(open(), SIZE).unwrap();
    for (number, what) in (1..).zip(what) {
        match what {
            What::Write(sector, sectors) | What::Fua(sector, sectors) => {
                let data = vec![number; *sectors as usize * 512];
                let fua = matches!(what, What::Fua(..));
                log.change(EntryKind::Write, sector * 512, data.len() as u64, fua, &data).unwrap();
            }
            What::Zero(sector) => {
                log.change(EntryKind::Zero, sector * 512, 512, false, &[]).unwrap();
            }
            What::Flush(covers) => log.flush(*covers).unwrap(),
        }
    }
    Reader::open(open()).unwrap()
}

enum What {
    Write(u64, u64),
    Fua(u64, u64),
    Zero(u64),
    Flush(u64),
}
use What::{Flush, Fua, Write, Zero};

fn plan(torn: bool) -> Plan {
    Plan { subsets: 8, torn, seed: 1 }
}

/// The first bytes of the first sectors in every image of a moment.
fn images(directory: &Directory, log: &Reader, plan: &Plan, point: usize) -> Vec<Vec<u8>> {
    let mut images = Images::new(log, plan, None, &directory.path("")).unwrap();
    let crash_images = plan.crash_images(&log.entries, Points::All).into_iter();
    let mut found: Vec<Vec<u8>> = crash_images
        .filter(|crash_image| crash_image.point == point)
        .map(|crash_image| {
            let image = fs::read(images.make(crash_image).unwrap()).unwrap();
            assert_eq!(image.len() as u64, SIZE);
            (0..4).map(|sector| image[sector * 512]).collect()
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn what_was_flushed_is_there_and_the_rest_may_be() {
    let directory = Directory::new();
    let log = log(&directory, &[Write(0, 1), Write(1, 1), Flush(2), Write(0, 1), Write(2, 1)]);
    let at = |point| images(&directory, &log, &plan(false), point);
    assert_eq!(at(0), [[0, 0, 0, 0]]);
    assert_eq!(at(1), [[0, 0, 0, 0], [1, 0, 0, 0]]);
    assert_eq!(at(2), [[0, 0, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [1, 2, 0, 0]]);
    assert_eq!(at(3), [[1, 2, 0, 0]]);
    assert_eq!(at(5), [[1, 2, 0, 0], [1, 2, 5, 0], [4, 2, 0, 0], [4, 2, 5, 0]]);
}

#[test]
fn a_flush_covers_only_what_was_answered_before_it() {
    let directory = Directory::new();
    let log = log(&directory, &[Write(0, 1), Write(1, 1), Flush(1)]);
    assert_eq!(images(&directory, &log, &plan(false), 3), [[1, 0, 0, 0], [1, 2, 0, 0]]);
}

/// And an older write that is late does not overwrite it.
#[test]
fn a_write_with_fua_is_there_at_once_and_alone() {
    let directory = Directory::new();
    let log = log(&directory, &[Write(0, 2), Fua(0, 1), Zero(1)]);
    let at = |point| images(&directory, &log, &plan(false), point);
    assert_eq!(at(2), [[2, 0, 0, 0], [2, 1, 0, 0]]);
    assert_eq!(at(3), [[2, 0, 0, 0], [2, 1, 0, 0]]);
}

#[test]
fn a_torn_write_is_there_in_part() {
    let directory = Directory::new();
    let log = log(&directory, &[Write(0, 4)]);
    assert_eq!(images(&directory, &log, &plan(false), 1), [[0, 0, 0, 0], [1, 1, 1, 1]]);
    let torn = images(&directory, &log, &plan(true), 1);
    assert!(torn.len() > 2, "{torn:?}");
}

#[test]
fn moments_are_where_it_matters_and_can_be_repeated() {
    let directory = Directory::new();
    let log = log(&directory, &[Write(0, 1), Write(1, 1), Write(2, 1), Flush(3), Write(0, 1)]);
    let points = |which: &str| {
        let crash_images = plan(false).crash_images(&log.entries, which.parse().unwrap());
        let mut points: Vec<_> = crash_images.iter().map(|crash_image| crash_image.point).collect();
        points.dedup();
        points
    };
    assert_eq!(points("flushes"), [3, 4, 5]);
    assert_eq!(points("all"), [0, 1, 2, 3, 4, 5]);
    assert!((1..=3).contains(&points("3").len()));
    assert_eq!(points("3"), points("3"));
    assert!("0".parse::<Points>().is_err() && "some".parse::<Points>().is_err());
    assert_eq!("17.3".parse(), Ok(CrashImage { point: 17, choice: 3 }));
    assert!("17".parse::<CrashImage>().is_err());
}
