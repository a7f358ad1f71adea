//! Files that are no ledger, or the ledger of another device.

use std::ffi::CStr;
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::OwnedFd;

use nbd_ledger::layout::{Header, MAGIC, VERSION};
use nbd_ledger::{Corruption, Inspector, Layout, Ledger, LedgerError};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::crashed_ledger::{CrashedLedger, LAYOUT};

const NAME: &CStr = c"hostile";

/// The corruption that a backend and the holder agree on.
fn corruption(file: &File, layout: &Layout) -> Corruption {
    let file = || OwnedFd::from(file.try_clone().unwrap());
    let found = [Ledger::open(file(), layout).map(drop), Inspector::open(file(), layout).map(drop)];
    match found {
        [Err(LedgerError::Corrupt(one)), Err(LedgerError::Corrupt(other))] => {
            assert_eq!(one, other);
            one
        }
        other => panic!("no corruption: {other:?}"),
    }
}

fn memfd(size: u64, seals: SealFlag) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(NAME, flags).unwrap());
    file.set_len(size).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file
}

fn assert_not_the_file(file: &File) {
    let expected = LAYOUT.size();
    assert_eq!(corruption(file, &LAYOUT), Corruption::File { expected });
}

#[test]
fn shrunken_file_is_refused() {
    assert_not_the_file(&memfd(LAYOUT.size() - 4096, SealFlag::F_SEAL_SHRINK));
}

#[test]
fn grown_file_is_refused() {
    assert_not_the_file(&memfd(LAYOUT.size() + 4096, SealFlag::F_SEAL_SHRINK));
}

#[test]
fn file_that_could_shrink_is_refused() {
    assert_not_the_file(&memfd(LAYOUT.size(), SealFlag::F_SEAL_GROW));
}

#[test]
fn file_that_is_no_memory_is_refused() {
    assert_not_the_file(&File::open("/dev/null").unwrap());
}

#[test]
fn ledger_cannot_be_shrunk_by_its_backend() {
    let ledger = CrashedLedger::new();
    assert!(ledger.file.set_len(LAYOUT.size() - 4096).is_err());
    assert!(ledger.file.set_len(LAYOUT.size() + 4096).is_err());
}

#[test]
fn empty_file_is_refused() {
    let file = memfd(LAYOUT.size(), SealFlag::F_SEAL_SHRINK);
    assert_eq!(corruption(&file, &LAYOUT), header("magic", 0, MAGIC));
}

#[test]
fn wrong_magic_is_refused() {
    let ledger = CrashedLedger::new();
    ledger.set_long(offset_of!(Header, magic) as u64, MAGIC.swap_bytes());
    let expected = header("magic", MAGIC.swap_bytes(), MAGIC);
    assert_eq!(corruption(&ledger.file, &LAYOUT), expected);
}

#[test]
fn wrong_version_is_refused() {
    let ledger = CrashedLedger::new();
    ledger.set_short(offset_of!(Header, version) as u64, VERSION + 1);
    let (found, expected) = (u64::from(VERSION) + 1, VERSION.into());
    assert_eq!(corruption(&ledger.file, &LAYOUT), header("version", found, expected));
}

#[test]
fn wrong_number_of_lanes_is_refused() {
    let ledger = CrashedLedger::new();
    ledger.set_short(offset_of!(Header, lanes) as u64, 2);
    assert_eq!(corruption(&ledger.file, &LAYOUT), header("lanes", 2, 1));
}

#[test]
fn wrong_payload_limit_is_refused() {
    let ledger = CrashedLedger::new();
    ledger.set_short(offset_of!(Header, max_payload) as u64, 1);
    let expected = LAYOUT.max_payload.into();
    assert_eq!(corruption(&ledger.file, &LAYOUT), header("payload limit", 1, expected));
}

/// The sizes of ring and transmit area are exchanged: the file's size tells nothing.
#[test]
fn other_division_of_the_same_file_is_refused() {
    let transmit = LAYOUT.transmit - 8192;
    let ring = LAYOUT.ring + 8192;
    let other = Layout { ring, transmit, ..LAYOUT };
    let ledger = CrashedLedger::new();
    assert_eq!(corruption(&ledger.file, &other), header("ring size", LAYOUT.ring, ring));
    ledger.set_long(offset_of!(Header, ring) as u64, ring);
    let expected = header("transmit size", LAYOUT.transmit, transmit);
    assert_eq!(corruption(&ledger.file, &other), expected);
}

fn header(what: &'static str, found: u64, expected: u64) -> Corruption {
    Corruption::Header { what, found, expected }
}
