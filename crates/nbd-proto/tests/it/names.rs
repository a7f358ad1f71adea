//! What people get to read, and the map between errors and errno.

use nbd_proto::{
    CommandFlags, CommandType, NbdError, Rejection, ReplyType, TransmissionFlags, WrongMagic,
};
use proptest::prelude::*;

#[test]
fn commands() {
    assert_eq!(CommandType::READ.to_string(), "read");
    assert_eq!(CommandType::WRITE_ZEROES.to_string(), "write zeroes");
    assert_eq!(CommandType(77).to_string(), "command 77");
    assert_eq!(format!("{:>8}", CommandType::TRIM), "    trim");
}

#[test]
fn flags() {
    assert_eq!((CommandFlags::FUA | CommandFlags::DF).to_string(), "FUA|DF");
    assert_eq!(CommandFlags::NONE.to_string(), "none");
    assert_eq!(CommandFlags::from_bits(0x8041).to_string(), "FUA|0x8040");
    assert_eq!(CommandFlags::from_bits(0x8000).to_string(), "0x8000");
    let shared = TransmissionFlags::HAS_FLAGS.union(TransmissionFlags::CAN_MULTI_CONN);
    assert_eq!(format!("{shared:?}"), "TransmissionFlags(HAS_FLAGS|CAN_MULTI_CONN)");
}

#[test]
fn reply_types() {
    assert_eq!(ReplyType::OFFSET_HOLE.to_string(), "offset hole");
    assert_eq!(ReplyType(9).to_string(), "reply type 9");
    assert!(ReplyType::ERROR.is_error() && ReplyType(0x8077).is_error());
    assert!(!ReplyType::NONE.is_error());
}

#[test]
fn errors() {
    assert_eq!(NbdError::EIO.to_string(), "EIO (input/output error)");
    assert_eq!(NbdError(999).to_string(), "error 999");
    assert_eq!(NbdError::SUCCESS.into_result(), Ok(()));
    assert_eq!(NbdError::EPERM.into_result(), Err(NbdError::EPERM));
    let wrong = WrongMagic { found: 0x12 };
    assert_eq!(wrong.to_string(), "wrong magic number 0x00000012");
}

#[test]
fn rejections_name_their_numbers() {
    let (command, offset, length) = (CommandType::WRITE, 4096, 512);
    let beyond = Rejection::BeyondEnd { command, offset, length, size: 4608 };
    let text = "write of 512 bytes at 4096 passes the end of the export at 4608";
    assert_eq!(beyond.to_string(), text);
    let text = "command 77 is not offered by the export";
    assert_eq!(Rejection::Unsupported(CommandType(77)).to_string(), text);
}

#[test]
fn errno_becomes_the_nearest_error() {
    let map = [
        (1, NbdError::EPERM),
        (5, NbdError::EIO),
        (12, NbdError::ENOMEM),
        (13, NbdError::EPERM), // EACCES
        (22, NbdError::EINVAL),
        (27, NbdError::ENOSPC), // EFBIG
        (28, NbdError::ENOSPC),
        (30, NbdError::EPERM), // EROFS
        (75, NbdError::EOVERFLOW),
        (95, NbdError::ENOTSUP), // EOPNOTSUPP
        (108, NbdError::ESHUTDOWN),
        (122, NbdError::ENOSPC), // EDQUOT
        (0, NbdError::EIO),
        (19, NbdError::EIO), // ENODEV
        (-22, NbdError::EIO),
    ];
    for (errno, error) in map {
        assert_eq!(NbdError::from_errno(errno), error, "errno {errno}");
    }
}

proptest! {
    #[test]
    fn a_failure_never_turns_into_success(errno: i32, error in 1..=u32::MAX) {
        prop_assert!(!NbdError::from_errno(errno).is_success());
        prop_assert_ne!(NbdError(error).to_errno(), 0);
    }

    /// An error relayed from another server reaches the client unchanged.
    #[test]
    fn named_errors_survive_errno(error in prop::sample::select(
        &[1_u32, 5, 12, 22, 28, 75, 95, 108][..]
    )) {
        let error = NbdError(error);
        prop_assert_eq!(NbdError::from_errno(error.to_errno()), error);
    }
}
