//! The error that each invalid request gets. The connection works afterwards.

use nbd_proto::handshake::ReplyStyle;
use nbd_proto::{CommandFlags as Flags, CommandType as Type, NbdError};
use nbd_server::Limits;
use nbd_server::testing::{Outcome, RawClient};

use crate::test_server::{BAD, Disk, SIZE, STYLES, TestServer};

/// Sends a request as it is, with as much payload as it announces, and returns the error.
fn refused(
    client: &mut RawClient,
    command: Type,
    flags: Flags,
    offset: u64,
    length: u64,
) -> NbdError {
    let is_extended = client.established.style == ReplyStyle::Extended;
    let has_payload =
        if is_extended { flags.contains(Flags::PAYLOAD_LEN) } else { command == Type::WRITE };
    let head = client.request(command, flags, 7, offset, length);
    let payload = vec![0; if has_payload { length as usize } else { 0 }];
    client.send(&[head, payload].concat());
    let answer = client.answer(0);
    assert_eq!(answer.cookie, 7);
    match answer.outcome {
        Outcome::Failed(error, words) => {
            let has_words = client.established.style != ReplyStyle::Simple;
            assert!(has_words || words.is_empty());
            error
        }
        other => panic!("{command} {flags} of {length} at {offset}: {other:?}"),
    }
}

fn check(client: &mut RawClient, table: &[(Type, Flags, u64, u64, NbdError)]) {
    for &(command, flags, offset, length, expected) in table {
        // A write announces its payload where that has to be said.
        let flags = match (client.established.style, command) {
            (ReplyStyle::Extended, Type::WRITE) => flags | Flags::PAYLOAD_LEN,
            _ => flags,
        };
        let error = refused(client, command, flags, offset, length);
        assert_eq!(error, expected, "{command} {flags} of {length} at {offset}");
        // The connection still works.
        match client.call(Type::READ, 0, 8) {
            Outcome::Data(..) => {}
            other => panic!("{other:?}"),
        }
    }
}

const NONE: Flags = Flags::NONE;

#[test]
fn requests_outside_the_export_are_refused() {
    let server = TestServer::new();
    for style in STYLES {
        check(
            &mut server.client(style),
            &[
                (Type::READ, NONE, SIZE, 1, NbdError::EINVAL),
                (Type::READ, NONE, SIZE - 1, 2, NbdError::EINVAL),
                (Type::READ, NONE, u64::MAX, 1, NbdError::EINVAL),
                (Type::READ, NONE, u64::MAX - 8, 16, NbdError::EINVAL),
                (Type::WRITE, NONE, SIZE, 1, NbdError::ENOSPC),
                (Type::WRITE, NONE, SIZE - 1, 2, NbdError::ENOSPC),
                (Type::WRITE, NONE, u64::MAX, 4096, NbdError::ENOSPC),
                (Type::WRITE_ZEROES, NONE, 1, SIZE, NbdError::ENOSPC),
                (Type::TRIM, NONE, 1, SIZE, NbdError::EINVAL),
                (Type::CACHE, NONE, 1, SIZE, NbdError::EINVAL),
                (Type::FLUSH, NONE, 1, 0, NbdError::EINVAL),
                (Type::FLUSH, NONE, 0, 512, NbdError::EINVAL),
                (Type::RESIZE, NONE, 0, 4096, NbdError::EINVAL),
                (Type(9), NONE, 0, 0, NbdError::EINVAL),
                (Type(u16::MAX), NONE, 0, 512, NbdError::EINVAL),
            ],
        );
    }
}

#[test]
fn misplaced_and_unknown_flags_are_refused() {
    let server = TestServer::new();
    for style in STYLES {
        let mut client = server.client(style);
        check(
            &mut client,
            &[
                (Type::READ, Flags::NO_HOLE, 0, 8, NbdError::EINVAL),
                (Type::READ, Flags::REQ_ONE, 0, 8, NbdError::EINVAL),
                (Type::READ, Flags::FAST_ZERO, 0, 8, NbdError::EINVAL),
                (Type::WRITE, Flags::DF, 0, 8, NbdError::EINVAL),
                (Type::WRITE, Flags::NO_HOLE, 0, 8, NbdError::EINVAL),
                (Type::FLUSH, Flags::DF, 0, 0, NbdError::EINVAL),
                (Type::TRIM, Flags::NO_HOLE, 0, 8, NbdError::EINVAL),
                (Type::WRITE_ZEROES, Flags::DF, 0, 8, NbdError::EINVAL),
                (Type::READ, Flags::from_bits(1 << 15), 0, 8, NbdError::EINVAL),
            ],
        );
        if style == ReplyStyle::Simple {
            check(&mut client, &[(Type::READ, Flags::DF, 0, 8, NbdError::EINVAL)]);
        }
    }
    // A payload of a command that takes none is discarded, and the request refused.
    let payload = Flags::PAYLOAD_LEN;
    check(
        &mut server.client(ReplyStyle::Extended),
        &[
            (Type::READ, payload, 0, 8, NbdError::EINVAL),
            (Type::FLUSH, payload, 0, 100_000, NbdError::EINVAL),
            (Type::WRITE_ZEROES, payload, 0, 4096, NbdError::EINVAL),
            (Type(99), payload, 0, 77, NbdError::EINVAL),
            (Type::BLOCK_STATUS, payload, 0, 7, NbdError::EINVAL),
        ],
    );
}

/// qemu's client omits the flag, against the specification.
#[test]
fn an_extended_write_without_the_payload_flag_is_executed() {
    let server = TestServer::new();
    let mut client = server.client(ReplyStyle::Extended);
    let request = client.request(Type::WRITE, NONE, 7, 4096, 512);
    client.send(&[request, vec![7; 512]].concat());
    assert_eq!(client.answer(0).outcome, Outcome::Done);
    assert_eq!(client.call(Type::READ, 4096, 512), Outcome::Data(4096, vec![7; 512]));
}

#[test]
fn invalid_block_status_requests_are_refused() {
    let server = TestServer::new();
    check(
        &mut server.client(ReplyStyle::Simple),
        &[(Type::BLOCK_STATUS, NONE, 0, 4096, NbdError::EINVAL)],
    );
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        check(
            &mut server.client(style),
            &[
                (Type::BLOCK_STATUS, NONE, 0, 0, NbdError::EINVAL),
                (Type::BLOCK_STATUS, NONE, SIZE, 1, NbdError::EINVAL),
                (Type::BLOCK_STATUS, Flags::DF, 0, 512, NbdError::EINVAL),
            ],
        );
    }
}

#[test]
fn writes_to_a_read_only_export_are_refused() {
    let server = TestServer::new();
    for style in STYLES {
        let mut client = server.client_of("ro", style);
        check(
            &mut client,
            &[
                (Type::WRITE, NONE, 0, 512, NbdError::EPERM),
                // Read-only is checked before the range.
                (Type::WRITE, NONE, SIZE, 512, NbdError::EPERM),
                (Type::TRIM, NONE, 0, 512, NbdError::EPERM),
                (Type::WRITE_ZEROES, NONE, 0, 512, NbdError::EPERM),
            ],
        );
        assert_eq!(client.call(Type::FLUSH, 0, 0), Outcome::Done);
    }
}

#[test]
fn requests_below_the_block_size_are_refused() {
    let server = TestServer::with(Disk::new(4096), Limits::default());
    for style in STYLES {
        let mut client = server.client(style);
        for (command, offset, length) in [
            (Type::READ, 512, 4096),
            (Type::READ, 0, 512),
            (Type::WRITE, 1, 4096),
            (Type::WRITE, 0, 1),
            (Type::TRIM, 0, 512),
            (Type::WRITE_ZEROES, 512, 4096),
        ] {
            let flags = match (style, command) {
                (ReplyStyle::Extended, Type::WRITE) => Flags::PAYLOAD_LEN,
                _ => NONE,
            };
            let error = refused(&mut client, command, flags, offset, length);
            assert_eq!(error, NbdError::EINVAL, "{command} of {length} at {offset}");
        }
        assert!(!matches!(client.call(Type::READ, 4096, 4096), Outcome::Failed(..)));
    }
}

#[test]
fn requests_above_the_maximum_payload_are_refused() {
    let max_payload = 64 << 10;
    let server = TestServer::with(Disk::new(1), Limits { max_payload, ..Limits::default() });
    let more = u64::from(max_payload) + 1;
    for style in STYLES {
        let mut client = server.client(style);
        assert_eq!(client.established.block_sizes.maximum, max_payload);
        check(
            &mut client,
            &[
                (Type::READ, NONE, 0, more, NbdError::EOVERFLOW),
                (Type::WRITE, NONE, 0, more, NbdError::EINVAL),
            ],
        );
        // The limit does not apply to commands that move no data.
        assert_eq!(client.call(Type::WRITE_ZEROES, 0, SIZE), Outcome::Done);
        assert!(!matches!(client.call(Type::READ, 0, more - 1), Outcome::Failed(..)));
    }
    let mut client = server.client(ReplyStyle::Extended);
    let error = refused(&mut client, Type::READ, NONE, 0, 1 << 40);
    assert_eq!(error, NbdError::EINVAL);
}

#[test]
fn storage_errors_become_nbd_errors() {
    let server = TestServer::new();
    for style in STYLES {
        let mut client = server.client(style);
        for (errno, expected) in [
            (1, NbdError::EPERM),
            (5, NbdError::EIO),
            (6, NbdError::EIO),
            (12, NbdError::ENOMEM),
            (13, NbdError::EPERM),
            (22, NbdError::EINVAL),
            (28, NbdError::ENOSPC),
            (30, NbdError::EPERM),
            (75, NbdError::EOVERFLOW),
            // The specification reserves ENOTSUP for WRITE_ZEROES with FAST_ZERO.
            (95, NbdError::EINVAL),
            (108, NbdError::ESHUTDOWN),
            (110, NbdError::EIO),
            (122, NbdError::ENOSPC),
        ] {
            let read = refused(&mut client, Type::READ, NONE, BAD + errno, 512);
            assert_eq!(read, expected, "reading with errno {errno}");
            let flags = match style {
                ReplyStyle::Extended => Flags::PAYLOAD_LEN,
                _ => NONE,
            };
            let written = refused(&mut client, Type::WRITE, flags, BAD + errno, 512);
            assert_eq!(written, expected, "writing with errno {errno}");
        }
    }
}
