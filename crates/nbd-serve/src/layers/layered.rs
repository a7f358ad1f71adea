//! A backend on top of another one: a part of it, or with a hook around each command.

use std::fmt;
use std::io;
use std::sync::Arc;

use nbd_backend::{Backend, Command, Extent, Geometry, Span, Task, ZeroOptions};

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

    /// A hook may block.
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        match self.hook {
            None => self.inner.try_read_at(buffer, self.start + offset),
            Some(_) => Ok(false),
        }
    }

    fn span(&self, offset: u64, length: u32) -> Option<Span> {
        match self.hook {
            None => self.inner.span(self.start + offset, length),
            Some(_) => None,
        }
    }

    fn span_mut(&self, offset: u64, length: u32) -> Option<Span> {
        match self.hook {
            None => self.inner.span_mut(self.start + offset, length),
            Some(_) => None,
        }
    }

    fn prefetch(&self, offset: u64, length: u32) {
        if self.hook.is_none() {
            self.inner.prefetch(self.start.saturating_add(offset), length);
        }
    }

    fn is_quick(&self, command: &Command) -> bool {
        self.hook.is_none() && self.inner.is_quick(&shifted(command, self.start))
    }

    fn is_local(&self, command: &Command) -> bool {
        self.hook.is_none() && self.inner.is_local(&shifted(command, self.start))
    }

    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        self.run(Command::BlockStatus { offset, length, one }, &[], || {
            extents = self.inner.extents(self.start + offset, length, one)?;
            Ok(())
        })?;
        Ok(extents)
    }

    /// A task knows its own command only, so one that would have to be another one is carried out
    /// by a worker.
    fn start(&self, task: Box<dyn Task>) -> Option<Box<dyn Task>> {
        match self.hook {
            None if self.start == 0 => self.inner.start(task),
            _ => Some(task),
        }
    }

    fn close(&self) {
        self.inner.close();
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
