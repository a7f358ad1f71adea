//! Commands that the kernel sends although the export does not offer them.
//!
//! Linux 6.12 keeps, from an earlier export on the same device, that it may send write zeroes; and a
//! trim may be under way while it learns that it may not. An error would reach the user as one of the
//! disk. So zeroes are written, and a trim, which promises nothing, does nothing.

use std::io;

use nbd_proto::{Command, RequestRules, TransmissionFlags};

use crate::backend::Backend;

/// How much is written at once in the place of write zeroes.
const ZEROES: usize = 256 << 10;

/// The same export for a lane: with what the kernel may send. Read-only ones refuse it all the same.
pub(crate) fn widen(rules: RequestRules) -> RequestRules {
    let more = TransmissionFlags::SEND_WRITE_ZEROES | TransmissionFlags::SEND_TRIM;
    RequestRules { flags: rules.flags | more, ..rules }
}

/// Whether a backend does not offer a command. [`substitute`] executes it, which may block.
pub(crate) fn is_unoffered(backend: &dyn Backend, command: &Command) -> bool {
    match command {
        Command::WriteZeroes { .. } => !backend.geometry().capabilities.write_zeroes,
        Command::Trim { .. } => !backend.geometry().capabilities.trim,
        _ => false,
    }
}

/// Executes a command that the backend does not offer.
pub(crate) fn substitute(backend: &dyn Backend, command: &Command) -> io::Result<()> {
    let Command::WriteZeroes { mut offset, length, fua, .. } = *command else { return Ok(()) };
    let end = offset + length;
    let block = vec![0; ZEROES.min(usize::try_from(length).unwrap_or(ZEROES))];
    while offset < end {
        let count = (end - offset).min(block.len() as u64);
        backend.write_at(&block[..count as usize], offset, fua)?;
        offset += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use nbd_proto::{CommandFlags, CommandType, Rejection, Request};

    use super::*;
    use crate::backend::{Capabilities, Geometry};

    /// Can read and write, and nothing else.
    struct Plain(Mutex<Vec<u8>>);

    const SIZE: usize = 1 << 20;

    impl Backend for Plain {
        fn geometry(&self) -> Geometry {
            let capabilities = Capabilities::default();
            Geometry { size: SIZE as u64, block_size: 512, capabilities }
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let bytes = self.0.lock().unwrap();
            buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
            Ok(())
        }

        fn write_at(&self, data: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
            self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    #[test]
    fn zeroes_are_written_by_a_backend_that_knows_no_better() {
        let backend = Plain(Mutex::new(vec![7; SIZE]));
        // More than is written at once, and not a multiple of that.
        let (offset, length) = (512, ZEROES as u64 * 2 + 512);
        let (fua, no_hole, fast_only) = (false, false, false);
        for command in [
            Command::WriteZeroes { offset, length, fua, no_hole, fast_only },
            Command::Trim { offset: 0, length: SIZE as u64, fua },
        ] {
            assert!(is_unoffered(&backend, &command));
            substitute(&backend, &command).unwrap();
        }
        let mut found = vec![1; SIZE];
        backend.read_at(&mut found, 0).unwrap();
        let expected = |at: usize| if (512..512 + length as usize).contains(&at) { 0 } else { 7 };
        assert!(found.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
    }

    #[test]
    fn what_the_kernel_may_send_is_checked_like_any_request() {
        let export = RequestRules::new(SIZE as u64, TransmissionFlags::HAS_FLAGS);
        let request = |command, offset| Request {
            flags: CommandFlags::NONE,
            command,
            cookie: 1,
            offset,
            length: 512,
        };
        for command in [CommandType::WRITE_ZEROES, CommandType::TRIM] {
            assert!(request(command, 0).check(&export).is_err());
            assert!(request(command, 0).check(&widen(export)).is_ok());
            let beyond = request(command, SIZE as u64).check(&widen(export));
            assert!(matches!(beyond, Err(Rejection::BeyondEnd { .. })));
            let flags = export.flags | TransmissionFlags::READ_ONLY;
            let read_only = request(command, 0).check(&widen(RequestRules { flags, ..export }));
            assert_eq!(read_only, Err(Rejection::ReadOnly(command)));
        }
    }
}
