//! Commands that the kernel sends although the export does not offer them.
//!
//! Linux 6.12 keeps, from an earlier export on the same device, that it may send write zeroes; and a
//! trim may be under way while it learns that it may not. An error would reach the user as one of the
//! disk. So zeroes are written, and a trim, which promises nothing, does nothing.

use std::io;
use std::sync::Arc;

use nbd_proto::{Command, RequestRules, TransmissionFlags};

use crate::backend::{Backend, Extent, Geometry, ZeroOptions};
use crate::mapped_range::Span;
use crate::task::Task;

/// How much is written at once in the place of write zeroes.
const ZEROES: usize = 256 << 10;

/// The same export for a lane: with what the kernel may send. Read-only ones refuse it all the same.
pub(crate) fn widen(rules: RequestRules) -> RequestRules {
    let more = TransmissionFlags::SEND_WRITE_ZEROES | TransmissionFlags::SEND_TRIM;
    RequestRules { flags: rules.flags | more, ..rules }
}

/// The same backend for a lane: it carries out all that [`widen`] lets pass.
pub(crate) fn complete(backend: &Arc<dyn Backend>) -> Arc<dyn Backend> {
    let can = backend.geometry().capabilities;
    if can.write_zeroes && can.trim {
        return Arc::clone(backend);
    }
    Arc::new(Complete { inner: Arc::clone(backend), zeroes: can.write_zeroes, trim: can.trim })
}

/// A backend with substitutes for what it lacks.
struct Complete {
    inner: Arc<dyn Backend>,
    /// What it can do by itself.
    zeroes: bool,
    trim: bool,
}

impl Complete {
    fn is_substituted(&self, command: &Command) -> bool {
        match command {
            Command::WriteZeroes { .. } => !self.zeroes,
            Command::Trim { .. } => !self.trim,
            _ => false,
        }
    }

    fn write_as_zeroes(&self, mut offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let end = offset + length;
        let block = vec![0; ZEROES.min(usize::try_from(length).unwrap_or(ZEROES))];
        while offset < end {
            let count = (end - offset).min(block.len() as u64);
            self.inner.write_at(&block[..count as usize], offset, fua)?;
            offset += count;
        }
        Ok(())
    }
}

impl Backend for Complete {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        self.inner.write_at(data, offset, fua)
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        if self.trim { self.inner.trim(offset, length, fua) } else { Ok(()) }
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        if self.zeroes {
            return self.inner.write_zeroes(offset, length, how);
        }
        self.write_as_zeroes(offset, length, how.fua)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.cache(offset, length)
    }

    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        self.inner.try_read_at(buffer, offset)
    }

    fn span(&self, offset: u64, length: u32) -> Option<Span> {
        self.inner.span(offset, length)
    }

    fn span_mut(&self, offset: u64, length: u32) -> Option<Span> {
        self.inner.span_mut(offset, length)
    }

    fn prefetch(&self, offset: u64, length: u32) {
        self.inner.prefetch(offset, length);
    }

    fn is_quick(&self, command: &Command) -> bool {
        !self.is_substituted(command) && self.inner.is_quick(command)
    }

    fn is_local(&self, command: &Command) -> bool {
        !self.is_substituted(command) && self.inner.is_local(command)
    }

    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        self.inner.extents(offset, length, one)
    }

    fn start(&self, task: Box<dyn Task>) -> Option<Box<dyn Task>> {
        match self.is_substituted(task.command()) {
            true => Some(task),
            false => self.inner.start(task),
        }
    }

    fn close(&self) {
        self.inner.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use nbd_proto::{CommandFlags, CommandType, Rejection, Request};

    use super::*;
    use crate::backend::Capabilities;

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
        let plain: Arc<dyn Backend> = Arc::new(Plain(Mutex::new(vec![7; SIZE])));
        let backend = complete(&plain);
        // More than is written at once, and not a multiple of that.
        let (offset, length) = (512, ZEROES as u64 * 2 + 512);
        backend.write_zeroes(offset, length, ZeroOptions::default()).unwrap();
        backend.trim(0, SIZE as u64, false).unwrap();
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
