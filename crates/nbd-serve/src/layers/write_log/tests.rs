use std::os::unix::fs::FileExt;

use nbd_backend::Command;

use super::*;
use crate::layers::layered::CommandHook;
use crate::layers::record::Recorder;
use crate::testing::Directory;

const SIZE: u64 = 1 << 20;

fn file(directory: &Directory) -> File {
    let path = directory.path("log");
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn some(log: &mut Log) {
    log.change(EntryKind::Write, 512, 1024, false, &[7; 1024]).unwrap();
    log.change(EntryKind::Zero, 0, SIZE, true, &[]).unwrap();
    log.flush(1).unwrap();
}

#[test]
fn a_log_is_read_as_it_was_written_and_goes_on() {
    let directory = Directory::new();
    some(&mut Log::resume(file(&directory), SIZE).unwrap());
    let mut log = Log::resume(file(&directory), SIZE).unwrap();
    assert_eq!(log.count(), 3);
    some(&mut log);
    let reader = Reader::open(file(&directory)).unwrap();
    let what = |entry: &Entry| (entry.kind, entry.fua, entry.offset, entry.length);
    let once = [
        (EntryKind::Write, false, 512, 1024),
        (EntryKind::Zero, true, 0, SIZE),
        (EntryKind::Flush, false, 1, 0),
    ];
    let found: Vec<_> = reader.entries.iter().map(what).collect();
    assert_eq!(found, [once, once].concat());
    let mut data = [0; 24];
    reader.data(&reader.entries[3], 1000, &mut data).unwrap();
    assert_eq!(data, [7; 24]);
}

/// Whoever wrote it died in the middle of the last entry.
#[test]
fn a_part_of_an_entry_is_cut_off() {
    let directory = Directory::new();
    some(&mut Log::resume(file(&directory), SIZE).unwrap());
    let whole = file(&directory).metadata().unwrap().len();
    let mut log = Log::resume(file(&directory), SIZE).unwrap();
    log.change(EntryKind::Write, 0, 512, false, &[9; 512]).unwrap();
    let bytes = std::fs::read(directory.path("log")).unwrap();
    for length in whole..whole + 32 + 512 {
        let log = file(&directory);
        log.set_len(0).unwrap();
        log.write_all_at(&bytes[..length as usize], 0).unwrap();
        let log = Log::resume(log, SIZE).unwrap();
        assert_eq!(log.count(), 3, "{length}");
        assert_eq!(file(&directory).metadata().unwrap().len(), whole);
    }
}

#[test]
fn what_is_no_log_of_the_device_is_left_alone() {
    let directory = Directory::new();
    std::fs::write(directory.path("log"), "something that is dear to somebody").unwrap();
    assert!(matches!(Log::resume(file(&directory), SIZE), Err(LogError::Foreign)));
    std::fs::write(directory.path("log"), "short").unwrap();
    assert!(matches!(Log::resume(file(&directory), SIZE), Err(LogError::Foreign)));
    assert_eq!(std::fs::read(directory.path("log")).unwrap(), b"short");
    file(&directory).set_len(0).unwrap();
    drop(Log::resume(file(&directory), SIZE).unwrap());
    assert!(matches!(
        Log::resume(file(&directory), 512),
        Err(LogError::OtherSize { found: SIZE, size: 512 })
    ));
}

#[test]
fn what_was_not_carried_out_is_not_recorded() {
    let directory = Directory::new();
    let recorder = Recorder::new(Log::resume(file(&directory), SIZE).unwrap());
    let write = Command::Write { offset: 0, length: 512, fua: true };
    let fails = &mut || Err(io::Error::other("no"));
    assert!(recorder.run(&write, &[1; 512], fails).is_err());
    assert!(recorder.run(&Command::Flush, &[], fails).is_err());
    recorder.run(&Command::Read { offset: 0, length: 512 }, &[], &mut || Ok(())).unwrap();
    let entries = || Reader::open(file(&directory)).unwrap().entries;
    assert!(entries().is_empty());
    recorder.run(&write, &[1; 512], &mut || Ok(())).unwrap();
    // What is answered while a flush is under way is not covered by it.
    let during = &mut || recorder.run(&write, &[2; 512], &mut || Ok(()));
    recorder.run(&Command::Flush, &[], during).unwrap();
    assert_eq!(
        entries().iter().map(|entry| entry.kind).collect::<Vec<_>>(),
        [EntryKind::Write, EntryKind::Write, EntryKind::Flush]
    );
    assert_eq!(entries()[2].offset, 1);
}
