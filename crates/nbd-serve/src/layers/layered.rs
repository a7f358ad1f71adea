//! A backend on top of another one: a part of it, or with a hook around each command.

use std::fmt;
use std::io;
use std::sync::Arc;

use nbd_backend::{
    AsyncBackend, Backend, Command, Extent, Geometry, InlineBackend, MappedBackend, MappedRange,
    ZeroOptions,
};

/// What a layer does around each command.
pub(crate) trait CommandHook: Send + Sync {
    /// Carries out `inner`, or does not. `payload` is a write's.
    fn run(
        &self,
        command: &Command,
        payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()>;
}

/// How many threads may run a hook at once.
const HOOK_THREADS: usize = 32;

/// A backend on top of another one.
pub(crate) struct Layered {
    inner: Arc<dyn Backend>,
    geometry: Geometry,
    /// Where in the inner one this begins.
    start: u64,
    hook: Option<Box<dyn CommandHook>>,
}

impl fmt::Debug for Layered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Layered {
    /// A part of another backend, or all of it with other capabilities.
    pub(crate) fn subrange(inner: Arc<dyn Backend>, geometry: Geometry, start: u64) -> Self {
        Self { inner, geometry, start, hook: None }
    }

    /// Another backend, with something done around each command.
    pub(crate) fn with(inner: Arc<dyn Backend>, hook: Box<dyn CommandHook>) -> Self {
        Self { geometry: inner.geometry(), inner, start: 0, hook: Some(hook) }
    }

    fn run(
        &self,
        command: Command,
        payload: &[u8],
        mut inner: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        match &self.hook {
            None => inner(),
            Some(hook) => hook.run(&command, payload, &mut inner),
        }
    }
}

impl Backend for Layered {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let command = Command::Read { offset, length: buffer.len() as u32 };
        self.run(command, &[], || self.inner.read_at(buffer, self.start + offset))
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let command = Command::Write { offset, length: data.len() as u32, fua };
        self.run(command, data, || self.inner.write_at(data, self.start + offset, fua))
    }

    fn flush(&self) -> io::Result<()> {
        self.run(Command::Flush, &[], || self.inner.flush())
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let command = Command::Trim { offset, length, fua };
        self.run(command, &[], || self.inner.trim(self.start + offset, length, fua))
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        let ZeroOptions { fua, no_hole, fast_only } = how;
        let command = Command::WriteZeroes { offset, length, fua, no_hole, fast_only };
        self.run(command, &[], || self.inner.write_zeroes(self.start + offset, length, how))
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        let command = Command::Cache { offset, length };
        self.run(command, &[], || self.inner.cache(self.start + offset, length))
    }

    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        self.run(Command::BlockStatus { offset, length, one }, &[], || {
            extents = self.inner.extents(self.start + offset, length, one)?;
            Ok(())
        })?;
        Ok(extents)
    }

    /// A hook may wait, as to delay a request, and others need not wait with it.
    fn max_threads(&self) -> usize {
        if self.hook.is_none() { self.inner.max_threads() } else { HOOK_THREADS }
    }

    /// A hook may block.
    fn is_quick(&self, command: &Command) -> bool {
        self.hook.is_none() && self.inner.is_quick(&shifted(command, self.start))
    }

    fn close(&self) {
        self.inner.close();
    }

    /// A hook may block.
    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        // Without an extension below, a request would count as begun while it is only queued.
        (self.hook.is_none() && self.inner.as_inline().is_some()).then_some(self as _)
    }

    fn as_mapped(&self) -> Option<&dyn MappedBackend> {
        if self.hook.is_none() { Some(self) } else { None }
    }

    /// A task knows its own command only, so one that would have to be another one is executed by a
    /// worker.
    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        if self.hook.is_none() && self.start == 0 { self.inner.as_async() } else { None }
    }
}

impl InlineBackend for Layered {
    fn never_blocks(&self, command: &Command) -> bool {
        let inner = self.inner.as_inline();
        inner.is_some_and(|inner| inner.never_blocks(&shifted(command, self.start)))
    }

    fn may_block_inline(&self, command: &Command) -> bool {
        let inner = self.inner.as_inline();
        inner.is_some_and(|inner| inner.may_block_inline(&shifted(command, self.start)))
    }

    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        let inner = self.inner.as_inline();
        inner.map_or(Ok(false), |inner| inner.try_read_at(buffer, self.start + offset))
    }
}

impl MappedBackend for Layered {
    fn mapped_range(&self, offset: u64, length: u32) -> Option<MappedRange> {
        self.inner.as_mapped()?.mapped_range(self.start + offset, length)
    }

    fn mapped_range_mut(&self, offset: u64, length: u32) -> Option<MappedRange> {
        self.inner.as_mapped()?.mapped_range_mut(self.start + offset, length)
    }

    fn check_received(&self) -> io::Result<()> {
        let inner = self.inner.as_mapped().ok_or(io::ErrorKind::Unsupported)?;
        inner.check_received()
    }

    fn prefetch(&self, offset: u64, length: u32) {
        if let Some(inner) = self.inner.as_mapped() {
            inner.prefetch(self.start.saturating_add(offset), length);
        }
    }
}

/// The command for the backend below that a command for a subrange becomes.
fn shifted(command: &Command, by: u64) -> Command {
    let mut command = *command;
    match &mut command {
        Command::Read { offset, .. }
        | Command::Write { offset, .. }
        | Command::Trim { offset, .. }
        | Command::Cache { offset, .. }
        | Command::WriteZeroes { offset, .. }
        | Command::BlockStatus { offset, .. } => *offset += by,
        Command::Flush | Command::Disconnect => {}
    }
    command
}
