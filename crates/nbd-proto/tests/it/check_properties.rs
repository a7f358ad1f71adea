//! Any request against any export: what every backend relies on.

use nbd_proto::{Command, CommandType, RequestRules, TransmissionFlags};
use proptest::prelude::*;

use crate::strategies::{export, extended_request, request};

/// In bounds, aligned, not too long, and allowed.
fn assert_in_order(command: Command, export: &RequestRules) -> Result<(), TestCaseError> {
    let (offset, length) = command.range();
    let end = offset.checked_add(length);
    if !matches!(command, Command::Flush | Command::Disconnect) {
        prop_assert!(end.is_some_and(|end| end <= export.size));
        let block = u64::from(export.min_block_size.max(1));
        prop_assert_eq!((offset % block, length % block), (0, 0));
    }
    if let Command::Read { length, .. } | Command::Write { length, .. } = command {
        prop_assert!(length <= export.max_payload);
    }
    if command.command_type().is_write() {
        prop_assert!(!export.flags.contains(TransmissionFlags::READ_ONLY));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn commands_are_in_order(request in request(), export in export()) {
        match request.check(&export) {
            Ok(command) => {
                assert_in_order(command, &export)?;
                prop_assert_eq!(command.command_type(), request.command);
                if command.command_type() == CommandType::WRITE {
                    prop_assert_eq!(request.payload_len(), request.length);
                }
            }
            Err(rejection) => {
                prop_assert!(!rejection.error().is_success());
                prop_assert!(!rejection.to_string().is_empty());
            }
        }
    }

    #[test]
    fn extended_commands_are_in_order(request in extended_request(), export in export()) {
        match request.check(&export) {
            Ok(command) => assert_in_order(command, &export)?,
            Err(rejection) => prop_assert!(!rejection.error().is_success()),
        }
    }

    /// A command forwarded to another server is understood there as the same command.
    #[test]
    fn commands_survive_forwarding(request in extended_request(), export in export()) {
        if let Ok(command) = request.check(&export) {
            prop_assert_eq!(command.to_extended_request(1).check(&export), Ok(command));
            if let Some(request) = command.to_request(1) {
                prop_assert_eq!(request.check(&export), Ok(command));
            }
        }
    }
}
