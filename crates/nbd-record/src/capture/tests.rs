use nbd_control::backend::ExportInfo;

use super::*;
use crate::writer::{begin, stop};

const EXPORT: ExportInfo = ExportInfo { size: 1 << 20, block_size: 512, flags: 1 };

/// A file that goes away with the test.
pub(crate) fn file() -> File {
    let flags = nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
    nix::sys::memfd::memfd_create(c"recording", flags).unwrap().into()
}

fn request(command: CommandType, cookie: u64, length: u32) -> Request {
    Request { flags: CommandFlags::FUA, command, cookie, offset: 4096 * cookie, length }
}

/// A capture in which a backend answers a read and dies with a write, and its successor answers
/// that one.
fn sample(limit: u64) -> (File, CaptureHeader) {
    let file = file();
    let header = begin(&file, "nbd0", EXPORT, 2, limit).unwrap();
    let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
    writer.backend_started(1, 100, 1);
    writer.request(0, &request(CommandType::READ, 1, 512), &[], false, 2);
    writer.answer(0, 1, NbdError::SUCCESS, 3);
    writer.request(1, &request(CommandType::WRITE, 2, 1024), &[7; 1024], false, 4);
    writer.commit();
    let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
    writer.backend_started(2, 101, 5);
    writer.request(1, &request(CommandType::WRITE, 2, 1024), &[7; 1024], true, 6);
    writer.commit();
    writer.answer(1, 2, NbdError::EIO, 7);
    writer.commit();
    (file, header)
}

#[test]
fn a_capture_is_read_as_written_and_a_request_of_two_backends_once() {
    let (file, header) = sample(1 << 20);
    let capture = Capture::read(file).unwrap();
    assert_eq!(capture.header, header);
    assert_eq!((capture.state, capture.torn, capture.backend_count()), (CaptureState::Going, 0, 2));
    let [read, write] = capture.requests[..] else { panic!("{:?}", capture.requests) };
    assert_eq!(read.request, request(CommandType::READ, 1, 512));
    assert_eq!((read.lane, read.error, read.backends), (0, Some(NbdError::SUCCESS), 1));
    assert_eq!((write.lane, write.error, write.backends), (1, Some(NbdError::EIO), 2));
    assert_eq!(capture.data(1).unwrap(), [7; 1024]);
    assert_eq!(
        capture.events,
        [
            CaptureEvent::BackendStarted { pid: 100 },
            CaptureEvent::Request(0),
            CaptureEvent::Answer(0),
            CaptureEvent::Request(1),
            CaptureEvent::BackendStarted { pid: 101 },
            CaptureEvent::Answer(1),
        ]
    );
}

#[test]
fn a_capture_that_is_cut_anywhere_ends_with_the_last_whole_entry() {
    let (file, _) = sample(1 << 20);
    let whole = Capture::read(file.try_clone().unwrap()).unwrap();
    let length = file.metadata().unwrap().len();
    for cut in (0..length).rev() {
        file.set_len(cut).unwrap();
        match Capture::read(file.try_clone().unwrap()) {
            Err(CaptureError::Foreign) => assert!(cut < ENTRIES_OFFSET, "{cut}"),
            Err(error) => panic!("{cut}: {error}"),
            Ok(found) => {
                assert!(whole.events.starts_with(&found.events), "{cut}");
                assert_eq!(
                    found.torn == 0,
                    [0, 64, 128, 192, 1280, 1344, 2432, 2496].contains(&(cut - ENTRIES_OFFSET)),
                    "{cut}"
                );
            }
        }
    }
}

#[test]
fn a_changed_byte_ends_the_capture_or_changes_nothing() {
    let (file, _) = sample(1 << 20);
    let whole = Capture::read(file.try_clone().unwrap()).unwrap();
    let length = file.metadata().unwrap().len();
    for at in 0..length {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        for flip in [1, 0x80] {
            file.write_all_at(&[byte[0] ^ flip], at).unwrap();
            if let Ok(found) = Capture::read(file.try_clone().unwrap()) {
                assert!(whole.events.starts_with(&found.events), "{at}");
                let same = found.events.len() == whole.events.len();
                assert_eq!(same, at < ENTRIES_OFFSET, "{at}: {found:?}");
            } else {
                assert!(at < 92, "{at}");
            }
        }
        file.write_all_at(&byte, at).unwrap();
    }
}

/// Checksums are no secret, so whole entries may say anything.
#[test]
fn valid_entries_with_impossible_content_are_skipped() {
    let file = file();
    begin(&file, "a name of more than thirty-two bytes", EXPORT, 1, 1 << 20).unwrap();
    let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
    writer.answer(0, 9, NbdError::SUCCESS, 0);
    writer.request(0, &request(CommandType::DISC, 1, 0), &[], false, 0);
    writer.request(0, &request(CommandType::WRITE, 2, 4096), &[0; 512], false, 0);
    writer.request(0, &request(CommandType::READ, 3, 512), &[0; 512], false, 0);
    writer.request(0, &request(CommandType(77), 4, 512), &[], true, 0);
    writer.commit();
    let capture = Capture::read(file.try_clone().unwrap()).unwrap();
    assert_eq!(capture.events, [CaptureEvent::Request(0)]);
    assert_eq!(capture.requests[0].request.command, CommandType(77));
    // There is one lane only.
    writer.request(1, &request(CommandType::READ, 5, 512), &[], false, 0);
    writer.commit();
    let capture = Capture::read(file).unwrap();
    assert_eq!((capture.events.len(), capture.torn), (1, 64));
}

#[test]
fn headers_of_impossible_devices_are_refused() {
    for (export, lanes) in [
        (ExportInfo { size: 0, ..EXPORT }, 1),
        (ExportInfo { size: 513, ..EXPORT }, 1),
        (ExportInfo { size: 1 << 63, ..EXPORT }, 1),
        (ExportInfo { block_size: 0, ..EXPORT }, 1),
        (ExportInfo { block_size: 8192, ..EXPORT }, 1),
        (EXPORT, 0),
        (EXPORT, MAX_LANES_AND_ONE),
    ] {
        let file = file();
        begin(&file, "nbd0", export, lanes, 0).unwrap();
        assert!(matches!(Capture::read(file), Err(CaptureError::Foreign)), "{export:?}");
    }
}

const MAX_LANES_AND_ONE: u32 = nbd_ledger::layout::MAX_LANES + 1;

#[test]
fn a_successor_overwrites_the_uncommitted_entries_of_its_predecessor() {
    let (file, _) = sample(1 << 20);
    let length = file.metadata().unwrap().len();
    file.write_all_at(&[0xff; 100], length).unwrap();
    assert_eq!(Capture::read(file.try_clone().unwrap()).unwrap().torn, 100);
    let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
    writer.backend_started(3, 102, 8);
    writer.commit();
    let capture = Capture::read(file).unwrap();
    assert_eq!((capture.torn, capture.backend_count()), (0, 3));
}

#[test]
fn an_answer_is_dropped_if_a_successor_takes_the_request_again() {
    let (file, _) = sample(1 << 20);
    let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
    writer.backend_started(3, 102, 8);
    writer.request(1, &request(CommandType::WRITE, 2, 1024), &[7; 1024], true, 9);
    writer.commit();
    let capture = Capture::read(file.try_clone().unwrap()).unwrap();
    assert_eq!(capture.unanswered().collect::<Vec<_>>(), [1]);
    writer.answer(1, 2, NbdError::SUCCESS, 10);
    writer.commit();
    let capture = Capture::read(file).unwrap();
    assert_eq!((capture.requests.len(), capture.requests[1].backends), (2, 3));
    assert_eq!(capture.requests[1].error, Some(NbdError::SUCCESS));
}

#[test]
fn a_stopped_capture_is_not_written_to() {
    let (file, _) = sample(1 << 20);
    let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
    let length = file.metadata().unwrap().len();
    stop(&file, CaptureState::Stopped).unwrap();
    writer.backend_started(3, 102, 8);
    assert_eq!(writer.commit(), CaptureState::Stopped);
    assert_eq!(file.metadata().unwrap().len(), length);
    assert_eq!(CaptureWriter::resume(file).unwrap().state(), CaptureState::Stopped);
}

#[test]
fn a_capture_stops_at_its_limit_and_says_so() {
    let (file, _) = sample(1700);
    let capture = Capture::read(file.try_clone().unwrap()).unwrap();
    assert_eq!((capture.state, capture.torn), (CaptureState::Full, 0));
    assert_eq!(capture.requests.len(), 2);
    assert!(file.metadata().unwrap().len() <= 1700);
}

#[test]
fn a_file_that_cannot_grow_ends_the_capture_with_whole_entries() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let (file, _) = sample(1 << 20);
    let length = file.metadata().unwrap().len();
    let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    writer.backend_started(3, 102, 8);
    assert_eq!(writer.commit(), CaptureState::Failed(nix::libc::EPERM));
    let capture = Capture::read(file.try_clone().unwrap()).unwrap();
    assert_eq!((capture.state, capture.torn), (CaptureState::Failed(nix::libc::EPERM), 0));
    assert_eq!(file.metadata().unwrap().len(), length);
}

#[test]
fn an_excerpt_has_the_chosen_requests() {
    let (source, _) = sample(1 << 20);
    let capture = Capture::read(source).unwrap();
    let target = file();
    capture.excerpt(&target, &[false, true]).unwrap();
    let found = Capture::read(target).unwrap();
    assert_eq!(found.state, CaptureState::Stopped);
    assert_eq!(found.requests.len(), 1);
    assert_eq!(found.requests[0].request, capture.requests[1].request);
    assert_eq!(found.data(0).unwrap(), [7; 1024]);
    assert_eq!(found.requests[0].error, Some(NbdError::EIO));
}
