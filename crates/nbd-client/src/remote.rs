//! An NBD server as a backend.

mod blocking;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use nbd_backend::{AsyncBackend, Backend, Completion, Extent, Geometry, Task, ZeroOptions};
use nbd_proto::{Command, NbdError};

use crate::connect::dialer::Dialer;
use crate::connect::error::{Cause, ClientError};
use crate::connect::target::Target;
use crate::connection::old_connection::StoredFd;
use crate::connection::pool::ConnectionPool;
use crate::connection::worker::{ConnectionWorker, Report};
use crate::job::Job;
use crate::options::{DEFAULT_CONNECTIONS, MAX_CONNECTIONS, Options};
use crate::shared::Shared;

/// An NBD server as a backend. It connects again whenever a connection is lost, and sends again
/// what was not answered.
pub struct Remote {
    shared: Arc<Shared>,
    is_started: AtomicBool,
}

impl Remote {
    /// Connects to a server, and takes the geometry from what it offers.
    ///
    /// # Errors
    ///
    /// [`ClientError`] if the first attempt fails: the target cannot be reached or started, the
    /// handshake fails, or the export cannot be a device.
    pub fn connect(target: impl Into<Target>, options: Options) -> Result<Self, ClientError> {
        let remote = Self::new(target.into(), options, OnceLock::new());
        let failed = |cause| {
            let target = remote.shared.dialer.name().into();
            ClientError { target, cause }
        };
        let (report, reports) = mpsc::channel();
        remote.is_started.store(true, Ordering::Relaxed);
        remote
            .shared
            .start_workers(Some(report), Vec::new())
            .map_err(|error| failed(Cause::Thread(error)))?;
        match reports.recv() {
            Ok(Ok(())) => Ok(remote),
            Ok(Err(cause)) => Err(failed(cause)),
            Err(mpsc::RecvError) => Err(failed(Cause::UnexpectedEof)),
        }
    }

    /// A device of this geometry, for a server to serve that is not connected to before
    /// [`begin`](Self::begin) or the first request: it may admit one client only, and our
    /// predecessor may still be connected. A server that offers something else then counts as
    /// unreachable.
    pub fn for_geometry(target: impl Into<Target>, options: Options, attached: Geometry) -> Self {
        Self::new(target.into(), options, attached.into())
    }

    fn new(target: Target, mut options: Options, geometry: OnceLock<Geometry>) -> Self {
        let (retry, connections) = match &target {
            Target::Uri(uri) => (uri.retry, uri.connections),
            Target::Program(program) => (program.retry, program.connections),
        };
        options.retry = retry.unwrap_or(options.retry);
        options.connections = connections.or(options.connections);
        let shared = Shared {
            dialer: Dialer::new(target, options.fence_limit),
            pool: ConnectionPool::new(options.retry),
            options,
            geometry,
            buffers: Arc::default(),
            jobs: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), is_started: AtomicBool::new(false) }
    }

    /// Begins to connect, in the background, unless that was done; but first fences what a
    /// predecessor left. Requests wait meanwhile.
    pub fn begin(&self, left: Vec<StoredFd>) {
        if self.is_started.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.shared.start_workers(None, left) {
            // Without this thread requests would wait forever; a successor may get one.
            tracing::error!("cannot start a thread: {error}");
            std::process::abort();
        }
    }

    /// The server, for people.
    pub fn name(&self) -> &str {
        self.shared.dialer.name()
    }

    /// How many connections there are now.
    pub fn connections(&self) -> usize {
        self.shared.pool.connections().len()
    }

    /// The process of a server that we have started.
    pub fn child_pidfd(&self) -> Option<OwnedFd> {
        self.shared.dialer.process()
    }

    /// Says goodbye to the server, waits for it to close the connections, and ends a program that
    /// was started. What was not answered by then is left to a successor.
    fn end(&self) {
        let pool = &self.shared.pool;
        if !pool.close() {
            return;
        }
        for connection in pool.connections() {
            connection.send_disconnect();
        }
        if !pool.wait_for_threads(self.shared.options.fence_limit) {
            for connection in pool.connections() {
                connection.socket().shutdown();
            }
        }
        self.shared.dialer.stop();
    }

    fn wait(&self, command: Command, data: &[u8]) -> Result<blocking::TaskResult, io::Error> {
        let (task, answer) = blocking::task(command, data);
        self.submit_async(task);
        answer.wait()
    }
}

impl Shared {
    /// Starts the threads; the first one reports how its first attempt went.
    fn start_workers(
        self: &Arc<Self>,
        report: Option<Report>,
        left: Vec<StoredFd>,
    ) -> io::Result<()> {
        ConnectionWorker::new(Arc::clone(self), 0).after(left).start(report)?;
        let count = self.options.connections.unwrap_or(DEFAULT_CONNECTIONS);
        for index in 1..count.clamp(1, MAX_CONNECTIONS) {
            ConnectionWorker::new(Arc::clone(self), index).start(None)?;
        }
        Ok(())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.name()).finish()
    }
}

impl Backend for Remote {
    fn geometry(&self) -> Geometry {
        // Always set: by `connect` before it returns, or by `for_geometry`.
        self.shared.geometry.get().copied().unwrap_or(Geometry {
            size: 0,
            block_size: 512,
            capabilities: Default::default(),
        })
    }

    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        Some(self)
    }

    /// Dropping does the same.
    fn close(&self) {
        self.end();
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        for (piece, at) in buffer
            .chunks_mut(blocking::MAX_TASK_BYTES)
            .zip((offset..).step_by(blocking::MAX_TASK_BYTES))
        {
            let command = Command::Read { offset: at, length: piece.len() as u32 };
            let answer = self.wait(command, &[])?;
            piece.copy_from_slice(answer.data.get(..piece.len()).unwrap_or_default());
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        for (piece, at) in
            data.chunks(blocking::MAX_TASK_BYTES).zip((offset..).step_by(blocking::MAX_TASK_BYTES))
        {
            self.wait(Command::Write { offset: at, length: piece.len() as u32, fua }, piece)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.wait(Command::Flush, &[]).map(drop)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.wait(Command::Trim { offset, length, fua }, &[]).map(drop)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        let ZeroOptions { fua, no_hole, fast_only } = how;
        let command = Command::WriteZeroes { offset, length, fua, no_hole, fast_only };
        self.wait(command, &[]).map(drop)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.wait(Command::Cache { offset, length }, &[]).map(drop)
    }

    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        let answer = self.wait(Command::BlockStatus { offset, length, one }, &[])?;
        Ok(answer.extents)
    }
}

impl AsyncBackend for Remote {
    fn submit_async(&self, task: Box<dyn Task>) {
        self.begin(Vec::new());
        let command = *task.command();
        let (_, length) = command.range();
        match command {
            Command::Flush => {}
            Command::Read { length: 0, .. } => return task.finish(Completion::Data(&[])),
            Command::Write { .. } if task.payload().len() as u64 != length => {
                return task.finish(Completion::Error(NbdError::EINVAL));
            }
            Command::Disconnect => return task.finish(Completion::Error(NbdError::EINVAL)),
            _ if length == 0 => return task.finish(Completion::Done),
            _ => {}
        }
        task.begin();
        let id = self.shared.jobs.fetch_add(1, Ordering::Relaxed);
        self.shared.pool.dispatch(Job::new(id, task, &self.shared.buffers));
    }
}
