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

/// A recording in which a backend answers a read and dies with a write, and its successor answers
/// that one.
fn sample(limit: u64) -> (File, Header) {
    let file = file();
    let header = begin(&file, "nbd0", EXPORT, 2, limit).unwrap();
    let mut writer = Writer::resume(file.try_clone().unwrap()).unwrap();
    writer.life(1, 100, 1);
    writer.request(0, &request(CommandType::READ, 1, 512), &[], false, 2);
    writer.answer(0, 1, NbdError::SUCCESS, 3);
    writer.request(1, &request(CommandType::WRITE, 2, 1024), &[7; 1024], false, 4);
    writer.commit();
    let mut writer = Writer::resume(file.try_clone().unwrap()).unwrap();
    writer.life(2, 101, 5);
    writer.request(1, &request(CommandType::WRITE, 2, 1024), &[7; 1024], true, 6);
    writer.commit();
    writer.answer(1, 2, NbdError::EIO, 7);
    writer.commit();
    (file, header)
}

#[test]
fn what_was_written_is_read_and_a_request_that_had_two_backends_is_one() {
    let (file, header) = sample(1 << 20);
    let recording = Recording::read(file).unwrap();
    assert_eq!(recording.header, header);
    assert_eq!((recording.state, recording.torn, recording.lives()), (State::Going, 0, 2));
    let [read, write] = recording.requests[..] else { panic!("{:?}", recording.requests) };
    assert_eq!(read.request, request(CommandType::READ, 1, 512));
    assert_eq!((read.lane, read.error, read.backends), (0, Some(NbdError::SUCCESS), 1));
    assert_eq!((write.lane, write.error, write.backends), (1, Some(NbdError::EIO), 2));
    assert_eq!(recording.data(1).unwrap(), [7; 1024]);
    assert_eq!(
        recording.events,
        [
            Event::Life { pid: 100 },
            Event::Request(0),
            Event::Answer(0),
            Event::Request(1),
            Event::Life { pid: 101 },
            Event::Answer(1),
        ]
    );
}

#[test]
fn a_recording_that_is_cut_anywhere_ends_with_the_last_whole_entry() {
    let (file, _) = sample(1 << 20);
    let whole = Recording::read(file.try_clone().unwrap()).unwrap();
    let length = file.metadata().unwrap().len();
    for cut in (0..length).rev() {
        file.set_len(cut).unwrap();
        match Recording::read(file.try_clone().unwrap()) {
            Err(RecordingError::Foreign) => assert!(cut < ENTRIES, "{cut}"),
            Err(error) => panic!("{cut}: {error}"),
            Ok(found) => {
                assert!(whole.events.starts_with(&found.events), "{cut}");
                assert_eq!(
                    found.torn == 0,
                    [0, 64, 128, 192, 1280, 1344, 2432, 2496].contains(&(cut - ENTRIES)),
                    "{cut}"
                );
            }
        }
    }
}

#[test]
fn a_changed_byte_ends_the_recording_or_means_nothing() {
    let (file, _) = sample(1 << 20);
    let whole = Recording::read(file.try_clone().unwrap()).unwrap();
    let length = file.metadata().unwrap().len();
    for at in 0..length {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        for flip in [1, 0x80] {
            file.write_all_at(&[byte[0] ^ flip], at).unwrap();
            if let Ok(found) = Recording::read(file.try_clone().unwrap()) {
                assert!(whole.events.starts_with(&found.events), "{at}");
                let same = found.events.len() == whole.events.len();
                assert_eq!(same, at < ENTRIES, "{at}: {found:?}");
            } else {
                assert!(at < 92, "{at}");
            }
        }
        file.write_all_at(&byte, at).unwrap();
    }
}

/// Checksums are no secret, so whole entries may say anything.
#[test]
fn entries_that_make_no_sense_are_left_out() {
    let file = file();
    begin(&file, "a name of more than thirty-two bytes", EXPORT, 1, 1 << 20).unwrap();
    let mut writer = Writer::resume(file.try_clone().unwrap()).unwrap();
    writer.answer(0, 9, NbdError::SUCCESS, 0);
    writer.request(0, &request(CommandType::DISC, 1, 0), &[], false, 0);
    writer.request(0, &request(CommandType::WRITE, 2, 4096), &[0; 512], false, 0);
    writer.request(0, &request(CommandType::READ, 3, 512), &[0; 512], false, 0);
    writer.request(0, &request(CommandType(77), 4, 512), &[], true, 0);
    writer.commit();
    let recording = Recording::read(file.try_clone().unwrap()).unwrap();
    assert_eq!(recording.events, [Event::Request(0)]);
    assert_eq!(recording.requests[0].request.command, CommandType(77));
    // There is one lane only.
    writer.request(1, &request(CommandType::READ, 5, 512), &[], false, 0);
    writer.commit();
    let recording = Recording::read(file).unwrap();
    assert_eq!((recording.events.len(), recording.torn), (1, 64));
}

#[test]
fn headers_of_devices_that_cannot_be_are_refused() {
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
        assert!(matches!(Recording::read(file), Err(RecordingError::Foreign)), "{export:?}");
    }
}

const MAX_LANES_AND_ONE: u32 = nbd_ledger::layout::MAX_LANES + 1;

#[test]
fn a_successor_writes_over_what_its_predecessor_left_half_written() {
    let (file, _) = sample(1 << 20);
    let length = file.metadata().unwrap().len();
    file.write_all_at(&[0xff; 100], length).unwrap();
    assert_eq!(Recording::read(file.try_clone().unwrap()).unwrap().torn, 100);
    let mut writer = Writer::resume(file.try_clone().unwrap()).unwrap();
    writer.life(3, 102, 8);
    writer.commit();
    let recording = Recording::read(file).unwrap();
    assert_eq!((recording.torn, recording.lives()), (0, 3));
}

#[test]
fn an_answer_that_was_written_down_and_not_given_is_none() {
    let (file, _) = sample(1 << 20);
    let mut writer = Writer::resume(file.try_clone().unwrap()).unwrap();
    writer.life(3, 102, 8);
    writer.request(1, &request(CommandType::WRITE, 2, 1024), &[7; 1024], true, 9);
    writer.commit();
    let recording = Recording::read(file.try_clone().unwrap()).unwrap();
    assert_eq!(recording.unanswered().collect::<Vec<_>>(), [1]);
    writer.answer(1, 2, NbdError::SUCCESS, 10);
    writer.commit();
    let recording = Recording::read(file).unwrap();
    assert_eq!((recording.requests.len(), recording.requests[1].backends), (2, 3));
    assert_eq!(recording.requests[1].error, Some(NbdError::SUCCESS));
}

#[test]
fn nothing_is_written_any_more_once_somebody_has_stopped_it() {
    let (file, _) = sample(1 << 20);
    let mut writer = Writer::resume(file.try_clone().unwrap()).unwrap();
    let length = file.metadata().unwrap().len();
    stop(&file, State::Stopped).unwrap();
    writer.life(3, 102, 8);
    assert_eq!(writer.commit(), State::Stopped);
    assert_eq!(file.metadata().unwrap().len(), length);
    assert_eq!(Writer::resume(file).unwrap().state(), State::Stopped);
}

#[test]
fn a_recording_stops_at_its_limit_and_says_so() {
    let (file, _) = sample(1700);
    let recording = Recording::read(file.try_clone().unwrap()).unwrap();
    assert_eq!((recording.state, recording.torn), (State::Full, 0));
    assert_eq!(recording.requests.len(), 2);
    assert!(file.metadata().unwrap().len() <= 1700);
}

#[test]
fn a_file_that_cannot_grow_ends_the_recording_with_whole_entries() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let (file, _) = sample(1 << 20);
    let length = file.metadata().unwrap().len();
    let mut writer = Writer::resume(file.try_clone().unwrap()).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    writer.life(3, 102, 8);
    assert_eq!(writer.commit(), State::Failed(nix::libc::EPERM));
    let recording = Recording::read(file.try_clone().unwrap()).unwrap();
    assert_eq!((recording.state, recording.torn), (State::Failed(nix::libc::EPERM), 0));
    assert_eq!(file.metadata().unwrap().len(), length);
}

#[test]
fn an_excerpt_has_what_was_chosen() {
    let (source, _) = sample(1 << 20);
    let recording = Recording::read(source).unwrap();
    let target = file();
    recording.excerpt(&target, &[false, true]).unwrap();
    let found = Recording::read(target).unwrap();
    assert_eq!(found.state, State::Stopped);
    assert_eq!(found.requests.len(), 1);
    assert_eq!(found.requests[0].request, recording.requests[1].request);
    assert_eq!(found.data(0).unwrap(), [7; 1024]);
    assert_eq!(found.requests[0].error, Some(NbdError::EIO));
}
