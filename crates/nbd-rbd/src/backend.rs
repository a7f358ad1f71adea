//! Requests to an image: each is submitted to librbd, and answered when that is done with it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use nbd_backend::{
    AbortOnPanic, AsyncBackend, Backend, Capabilities, Completion, Extent, Geometry, Task,
    ZeroOptions, request_flusher_privileges,
};
use nbd_proto::Command;

use crate::connect::{check_cache, connect, open_image, open_pool};
use crate::error::RbdError;
use crate::fence;
use crate::lock::{Record, RecordStore};
use crate::shared::{OnLoss, Shared};
use crate::spec::ImageSpec;
use crate::sys::image::{Image, Request};
use crate::task::{Finished, RunningTask, WaitingRequest, answer, fail};

/// librbd serves any byte; this is what kernels have as the smallest block.
const BLOCK_BYTES: u32 = 512;

/// What an image looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Of a device made of it.
    pub geometry: Geometry,
    /// The bytes at its end that are no whole block, and so not part of a device.
    pub tail: u64,
}

/// Looks at an image: connects, reads its size, and disconnects. Takes no lock and changes nothing.
///
/// # Errors
///
/// It cannot be reached, or cannot be a device.
pub fn look(spec: &ImageSpec) -> Result<Shape, RbdError> {
    let pool = open_pool(spec, &connect(spec)?)?;
    Shape::of(spec, &open_image(spec, &pool, true)?)
}

impl Shape {
    fn of(spec: &ImageSpec, image: &Image) -> Result<Self, RbdError> {
        let step = |error| RbdError::Step("read its size and features", error);
        let size = image.size().map_err(step)?;
        let tail = size % u64::from(BLOCK_BYTES);
        if size == tail {
            return Err(RbdError::Small(size));
        }
        let writes = !spec.is_read_only();
        let capabilities = Capabilities {
            read_only: !writes,
            flush: true,
            fua: writes,
            trim: writes,
            write_zeroes: writes,
            extents: image.has_fast_diff().map_err(step)?,
            unaligned: true,
            ..Capabilities::default()
        };
        let geometry = Geometry { size: size - tail, block_size: BLOCK_BYTES, capabilities };
        Ok(Self { geometry, tail })
    }
}

/// What a thread beside the requests does, because it may wait for the cluster.
enum Errand {
    Extents(Box<dyn Task>),
    Changed,
}

/// An image that serves.
pub struct RbdBackend {
    shared: Arc<Shared>,
    geometry: Geometry,
    finished: Sender<Finished>,
    errands: Sender<Errand>,
}

impl fmt::Debug for RbdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RbdBackend").field("image", &self.shared.name).finish_non_exhaustive()
    }
}

impl RbdBackend {
    /// Opens an image. One that is to be written is fenced and locked first, however long the cluster
    /// takes for that. `agree` checks the shape, and returns the size of the device.
    ///
    /// # Errors
    ///
    /// It cannot be reached, or is not ours to write.
    pub fn open<E: From<RbdError>>(
        spec: &ImageSpec,
        record: Arc<dyn RecordStore>,
        on_loss: OnLoss,
        agree: impl FnOnce(&Geometry) -> Result<u64, E>,
    ) -> Result<Self, E> {
        // The library's threads inherit it.
        request_flusher_privileges();
        let cluster = connect(spec)?;
        let pool = open_pool(spec, &cluster)?;
        let image = open_image(spec, &pool, spec.is_read_only())?;
        let mut geometry = Shape::of(spec, &image)?.geometry;
        let size = geometry.size;
        geometry.size = agree(&geometry)?;
        let record = (!spec.is_read_only()).then_some(record);
        let shared = Arc::new(Shared {
            name: spec.to_string(),
            image,
            has_extents: geometry.capabilities.extents,
            limit: AtomicU64::new(size.min(geometry.size)),
            record,
            on_loss,
            is_lost: AtomicBool::new(false),
            buffers: Mutex::default(),
        });
        let fence = || match &shared.record {
            Some(record) => {
                check_cache(spec, &shared.image)?;
                fence::take(spec, &cluster, &shared.image, &**record)
            }
            None => Ok(()),
        };
        // Last: what fails after it would leave an image that seems to be another client's.
        let started = Self::start(Arc::clone(&shared), geometry);
        started.and_then(|backend| fence().map(|()| backend)).map_err(|error| {
            shared.close();
            error.into()
        })
    }

    fn start(shared: Arc<Shared>, geometry: Geometry) -> Result<Self, RbdError> {
        let (finished, results) = channel();
        let (errands, to_do) = channel();
        let own = Arc::clone(&shared);
        spawn("rbd-answers", move || answer(&own, &results))?;
        let own = Arc::clone(&shared);
        spawn("rbd-errands", move || {
            for errand in to_do {
                match errand {
                    Errand::Extents(task) => status(&own, task),
                    Errand::Changed => own.check_size(geometry.size),
                }
            }
        })?;
        if shared.record.is_some() {
            let changes = errands.clone();
            let watched = shared.image.watch(move || drop(changes.send(Errand::Changed)));
            watched.map_err(|error| RbdError::Step("watch the image", error))?;
        }
        Ok(Self { shared, geometry, finished, errands })
    }

    /// Executes a request and waits. Returns what was read.
    fn execute(&self, request: Request, data: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let (done, result) = channel();
        let buffer = self.shared.take_buffer(length);
        let waiting = WaitingRequest { data: data.into(), buffer, done };
        self.shared.image.submit(request, Box::new(waiting));
        let (buffer, result) =
            result.recv().map_err(|_| io::Error::from_raw_os_error(libc::ESHUTDOWN))?;
        match result {
            Ok(count) if count < length => Err(io::Error::from_raw_os_error(libc::EIO)),
            Ok(_) => Ok(buffer),
            Err(error) => Err(self.shared.examine(error)),
        }
    }

    fn check_range(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.shared.reaches(offset, length) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image has shrunk"))
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), RbdError> {
    let thread = std::thread::Builder::new().name(name.into());
    let spawned = thread.spawn(move || {
        let _abort = AbortOnPanic;
        work();
    });
    spawned.map(drop).map_err(RbdError::Thread)
}

fn status(shared: &Shared, task: Box<dyn Task>) {
    if let Command::BlockStatus { offset, length, one } = *task.command() {
        let extents = shared.extents(offset, length, one);
        task.finish(Completion::Extents(&extents));
    }
}

/// What librbd is asked for; `None` for what it is not.
fn request_of(command: &Command) -> Option<Request> {
    Some(match *command {
        Command::Read { offset, .. } => Request::Read { offset },
        Command::Write { offset, fua, .. } => Request::Write { offset, fua },
        Command::Flush => Request::Flush,
        // Without a cache on this side, what is answered is durable.
        Command::Trim { offset, length, .. } => Request::Discard { offset, length },
        Command::WriteZeroes { offset, length, no_hole, .. } => {
            Request::Zero { offset, length, allocate: no_hole }
        }
        Command::BlockStatus { .. } | Command::Cache { .. } | Command::Disconnect => return None,
    })
}

impl AsyncBackend for RbdBackend {
    fn submit_async(&self, task: Box<dyn Task>) {
        let command = *task.command();
        task.begin();
        let (offset, length) = command.range();
        if let Err(error) = self.check_range(offset, length) {
            return fail(task, &error);
        }
        match (request_of(&command), command) {
            (_, Command::WriteZeroes { fast_only: true, .. }) => {
                fail(task, &io::ErrorKind::Unsupported.into());
            }
            (Some(request), _) => {
                let length = if let Command::Read { length, .. } = command { length } else { 0 };
                let buffer = self.shared.take_buffer(length as usize);
                let finished = self.finished.clone();
                self.shared.image.submit(request, Box::new(RunningTask { task, buffer, finished }));
            }
            (None, Command::BlockStatus { .. }) => drop(self.errands.send(Errand::Extents(task))),
            (None, _) => task.finish(Completion::Done),
        }
    }
}

impl Backend for RbdBackend {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_range(offset, buffer.len() as u64)?;
        let data = self.execute(Request::Read { offset }, &[], buffer.len())?;
        buffer.copy_from_slice(&data);
        self.shared.put_buffer(data);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        self.check_range(offset, data.len() as u64)?;
        self.execute(Request::Write { offset, fua }, data, 0).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        self.execute(Request::Flush, &[], 0).map(drop)
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> io::Result<()> {
        self.check_range(offset, length)?;
        self.execute(Request::Discard { offset, length }, &[], 0).map(drop)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        if how.fast_only {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.check_range(offset, length)?;
        self.execute(Request::Zero { offset, length, allocate: how.no_hole }, &[], 0).map(drop)
    }

    fn extents(&self, offset: u64, length: u64, one: bool) -> io::Result<Vec<Extent>> {
        Ok(self.shared.extents(offset, length, one))
    }

    fn close(&self) {
        let shared = &self.shared;
        if !shared.close() {
            tracing::warn!(
                "{}: the lock of the image stays until the cluster forgets this client",
                shared.name
            );
        } else if let Some(Err(error)) =
            shared.record.as_ref().map(|kept| kept.save(&Record::Empty))
        {
            tracing::warn!("{}: cannot note that the image is closed: {error}", shared.name);
        }
    }

    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        Some(self)
    }
}
