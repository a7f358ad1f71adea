//! Requests against exports, by the party at fault.

use nbd_proto::{
    Command, CommandFlags, CommandType, NbdError, Rejection, Request, RequestRules,
    TransmissionFlags,
};

pub(crate) const SIZE: u64 = 1 << 20;

/// An export that offers every command.
pub(crate) fn export_of(size: u64) -> RequestRules {
    let all = TransmissionFlags::from_bits(u16::MAX);
    RequestRules::new(size, all.without(TransmissionFlags::READ_ONLY))
}

fn request_for(command: CommandType, offset: u64, length: u32) -> Request {
    Request { flags: CommandFlags::NONE, command, cookie: 1, offset, length }
}

/// The error that `request` is answered with.
fn error(request: Request, export: &RequestRules) -> Option<NbdError> {
    request.check(export).err().map(|rejection| rejection.error())
}

#[test]
fn ordinary_requests_become_commands() {
    let export = export_of(SIZE);
    let checked = |command, flags, offset, length| {
        Request { flags, command, cookie: 1, offset, length }.check(&export)
    };
    let none = CommandFlags::NONE;
    let fua = CommandFlags::FUA;
    let (offset, length) = (4096, 512);
    let wide = 512;
    assert_eq!(checked(CommandType::READ, none, 4096, 512), Ok(Command::Read { offset, length }));
    assert_eq!(
        checked(CommandType::WRITE, fua, 4096, 512),
        Ok(Command::Write { offset, length, fua: true })
    );
    assert_eq!(checked(CommandType::FLUSH, none, 0, 0), Ok(Command::Flush));
    assert_eq!(
        checked(CommandType::TRIM, none, 4096, 512),
        Ok(Command::Trim { offset, length: wide, fua: false })
    );
    assert_eq!(
        checked(CommandType::CACHE, none, 4096, 512),
        Ok(Command::Cache { offset, length: wide })
    );
    let flags = CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO;
    let (fua, no_hole, fast_only) = (false, true, true);
    assert_eq!(
        checked(CommandType::WRITE_ZEROES, flags, 4096, 512),
        Ok(Command::WriteZeroes { offset, length: wide, fua, no_hole, fast_only })
    );
    assert_eq!(checked(CommandType::DISC, none, 0, 0), Ok(Command::Disconnect));
}

#[test]
fn empty_ranges_are_in_order_up_to_the_end() {
    let export = export_of(SIZE);
    let read = request_for(CommandType::READ, SIZE, 0);
    assert_eq!(read.check(&export), Ok(Command::Read { offset: SIZE, length: 0 }));
    let read = request_for(CommandType::READ, SIZE + 1, 0);
    assert_eq!(error(read, &export), Some(NbdError::EINVAL));
}

#[test]
fn client_disconnects_with_invalid_fields() {
    let request = Request {
        flags: CommandFlags::from_bits(u16::MAX),
        ..request_for(CommandType::DISC, u64::MAX, u32::MAX)
    };
    assert_eq!(request.check(&export_of(0)), Ok(Command::Disconnect));
}

#[test]
fn client_passes_the_end() {
    let export = export_of(SIZE);
    for (command, expected) in [
        (CommandType::READ, NbdError::EINVAL),
        (CommandType::WRITE, NbdError::ENOSPC),
        (CommandType::TRIM, NbdError::EINVAL),
        (CommandType::CACHE, NbdError::EINVAL),
        (CommandType::WRITE_ZEROES, NbdError::ENOSPC),
    ] {
        for (offset, length) in [(SIZE - 511, 512), (SIZE, 1), (u64::MAX, 1), (u64::MAX - 1, 512)] {
            let request = request_for(command, offset, length);
            assert_eq!(error(request, &export), Some(expected), "{command} at {offset}");
        }
        assert_eq!(error(request_for(command, SIZE - 512, 512), &export), None, "{command}");
    }
}

#[test]
fn client_writes_to_a_read_only_export() {
    let read_only = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
    let export = RequestRules::new(SIZE, read_only);
    for command in [CommandType::WRITE, CommandType::TRIM, CommandType::WRITE_ZEROES] {
        let request = request_for(command, 0, 512);
        assert_eq!(request.check(&export), Err(Rejection::ReadOnly(command)));
        assert_eq!(error(request, &export), Some(NbdError::EPERM));
    }
    assert_eq!(error(request_for(CommandType::READ, 0, 512), &export), None);
}

#[test]
fn client_asks_for_what_is_not_offered() {
    let export = RequestRules::new(SIZE, TransmissionFlags::HAS_FLAGS);
    for command in (3..=8).chain([9, 77, u16::MAX]).map(CommandType) {
        let request = request_for(command, 0, 0);
        assert_eq!(request.check(&export), Err(Rejection::Unsupported(command)));
        assert_eq!(error(request, &export), Some(NbdError::EINVAL));
    }
}

#[test]
fn client_sets_flags_that_are_not_offered() {
    let offered = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_WRITE_ZEROES;
    let export = RequestRules::new(SIZE, offered);
    for (command, flags) in [
        (CommandType::WRITE, CommandFlags::FUA),
        (CommandType::READ, CommandFlags::DF),
        (CommandType::WRITE_ZEROES, CommandFlags::FAST_ZERO),
    ] {
        let request = Request { flags, ..request_for(command, 0, 512) };
        assert_eq!(request.check(&export), Err(Rejection::InvalidFlags { command, flags }));
        assert_eq!(error(request, &export), Some(NbdError::EINVAL));
        assert_eq!(error(request, &export_of(SIZE)), None, "{command} where {flags} is offered");
    }
}

#[test]
fn client_sets_flags_of_another_command() {
    let export = export_of(SIZE);
    for (command, flags) in [
        (CommandType::WRITE, CommandFlags::DF),
        (CommandType::READ, CommandFlags::NO_HOLE),
        (CommandType::TRIM, CommandFlags::FAST_ZERO),
        (CommandType::READ, CommandFlags::REQ_ONE),
        (CommandType::WRITE, CommandFlags::PAYLOAD_LEN),
        (CommandType::FLUSH, CommandFlags::from_bits(0x8000)),
    ] {
        let both = flags | CommandFlags::FUA;
        let request = Request { flags: both, ..request_for(command, 0, 0) };
        assert_eq!(request.check(&export), Err(Rejection::InvalidFlags { command, flags }));
    }
}

/// FUA means nothing to a read or a flush, yet clients set it, and servers must take it.
#[test]
fn client_sets_fua_everywhere() {
    let export = export_of(SIZE);
    for command in [CommandType::READ, CommandType::FLUSH, CommandType::CACHE] {
        let request = Request { flags: CommandFlags::FUA, ..request_for(command, 0, 0) };
        assert_eq!(error(request, &export), None, "{command}");
    }
}

#[test]
fn client_flushes_a_range() {
    let export = export_of(SIZE);
    assert_eq!(
        request_for(CommandType::FLUSH, 0, 512).check(&export),
        Err(Rejection::FlushRange { offset: 0, length: 512 })
    );
    assert_eq!(error(request_for(CommandType::FLUSH, 512, 0), &export), Some(NbdError::EINVAL));
}

#[test]
fn client_ignores_the_block_size() {
    let export = RequestRules { min_block_size: 4096, ..export_of(SIZE) };
    for command in [CommandType::READ, CommandType::WRITE, CommandType::TRIM] {
        assert_eq!(error(request_for(command, 512, 4096), &export), Some(NbdError::EINVAL));
        assert_eq!(error(request_for(command, 4096, 512), &export), Some(NbdError::EINVAL));
        assert_eq!(error(request_for(command, 4096, 8192), &export), None);
    }
}

#[test]
fn client_moves_more_than_the_maximum_payload() {
    let export = RequestRules { max_payload: 65536, ..export_of(SIZE) };
    let write = request_for(CommandType::WRITE, 0, 65537);
    assert_eq!(error(write, &export), Some(NbdError::EINVAL));
    assert_eq!(write.payload_len(), 65537, "to be consumed nevertheless");
    let read = request_for(CommandType::READ, 0, 65537);
    assert_eq!(error(read, &export), Some(NbdError::EOVERFLOW));
    assert_eq!(error(request_for(CommandType::READ, 0, 65536), &export), None);
    assert_eq!(error(request_for(CommandType::WRITE_ZEROES, 0, 65537), &export), None);
    assert_eq!(error(request_for(CommandType::TRIM, 0, 65537), &export), None);
}
