//! Extended requests against exports: what differs from plain requests.

use nbd_proto::{Command, CommandFlags, CommandType, ExtendedRequest, NbdError, Rejection};

use crate::check::{SIZE, export_of};

#[test]
fn client_forgets_the_payload_flag_of_an_extended_write() {
    let export = export_of(SIZE);
    let command = CommandType::WRITE;
    let flags = CommandFlags::NONE;
    let write = ExtendedRequest { flags, command, cookie: 1, offset: 0, length: 512 };
    // As qemu does; there is data all the same.
    for write in [write, ExtendedRequest { flags: CommandFlags::PAYLOAD_LEN, ..write }] {
        let command = Command::Write { offset: 0, length: 512, fua: false };
        assert_eq!(write.check(&export), Ok(command));
        assert_eq!(write.payload_len(), 512);
    }
}

#[test]
fn client_sends_payload_with_an_extended_read() {
    let command = CommandType::READ;
    let flags = CommandFlags::PAYLOAD_LEN;
    let read = ExtendedRequest { flags, command, cookie: 1, offset: 0, length: 512 };
    let rejection = Rejection::InvalidFlags { command, flags };
    assert_eq!(read.check(&export_of(SIZE)), Err(rejection));
    assert_eq!(read.payload_len(), 512, "to be consumed nevertheless");
}

#[test]
fn extended_requests_reach_beyond_32_bits() {
    let export = export_of(1 << 40);
    let (flags, length) = (CommandFlags::NONE, 1 << 39);
    let trim =
        ExtendedRequest { flags, command: CommandType::TRIM, cookie: 1, offset: 4096, length };
    let command = Command::Trim { offset: 4096, length, fua: false };
    assert_eq!(trim.check(&export), Ok(command));
    assert_eq!(command.to_request(1), None);
    let read = ExtendedRequest { command: CommandType::READ, ..trim };
    assert_eq!(read.check(&export).unwrap_err().error(), NbdError::EOVERFLOW);
}
