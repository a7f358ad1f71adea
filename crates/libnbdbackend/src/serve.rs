//! The thread of a device: asks for the lanes, serves, and tells the program of the end.

use std::ffi::c_int;
use std::io;
use std::sync::{Arc, Once};

use nbd_backend::{Backend, Geometry, HolderConnection, Session, warm_up, warm_up_process};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::callbacks::Callbacks;
use crate::device::Device;
use crate::error::{Failure, Outcome, of_program};
use crate::queue::Entry;
use crate::queued::Queued;

/// How a device is served.
pub(crate) struct Served {
    pub(crate) description: String,
    pub(crate) takeover: bool,
    pub(crate) by: By,
}

/// Who executes its requests.
pub(crate) enum By {
    Callbacks(Arc<Callbacks>),
    Queue { queued: Arc<Queued>, tell_granted: bool },
}

impl By {
    fn backend(&self) -> Arc<dyn Backend> {
        match self {
            Self::Callbacks(callbacks) => Arc::clone(callbacks) as _,
            Self::Queue { queued, .. } => Arc::clone(queued) as _,
        }
    }

    fn granted(&self, device: c_int) -> c_int {
        match self {
            Self::Callbacks(callbacks) => callbacks.granted(device),
            Self::Queue { queued, tell_granted: true } => queued.granted(),
            Self::Queue { .. } => 0,
        }
    }

    fn tell(&self, entry: Entry) {
        if let Self::Queue { queued, .. } = self {
            queued.push(entry);
        }
    }
}

/// Starts a thread that leaves the program's signals to the program's own threads, and so do the
/// threads that it starts.
fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut blocked = SigSet::all();
    // A fault of a thread must reach the program's handler in that thread.
    let faults = [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGSYS,
    ];
    faults.into_iter().for_each(|fault| blocked.remove(fault));
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = std::thread::Builder::new().name("nbd-device".into()).spawn(run);
    before.thread_set_mask()?;
    started.map(drop)
}

/// Starts the device's thread, which asks for the lanes and serves.
pub(crate) fn start(device: &Arc<Device>, served: Served) -> Outcome<()> {
    let connection = device.take_connection()?;
    let thread_device = Arc::clone(device);
    spawn(move || run(&thread_device, connection, &served)).map_err(|error| {
        let failure = Failure::io("cannot start a thread", &error);
        device.end(Some(failure.clone()));
        failure
    })
}

/// Serves a device until its end.
fn run(device: &Arc<Device>, connection: HolderConnection, served: &Served) {
    let failure = try_run(device, connection, served).err();
    if let Some(failure) = &failure {
        tracing::error!("{}: {}", served.description, failure.message);
    }
    let error = failure.as_ref().map_or(0, |failure| -failure.errno);
    device.end(failure);
    // The program may close device and queue as soon as it is told.
    if let By::Queue { queued, .. } = &served.by {
        queued.queue.release();
    }
    served.by.tell(Entry::Ended(error));
}

fn try_run(device: &Arc<Device>, connection: HolderConnection, served: &Served) -> Outcome<()> {
    warm_up(&connection);
    if served.takeover || connection.takes_over() {
        static WARM: Once = Once::new();
        WARM.call_once(warm_up_process);
    }
    let backend = served.by.backend();
    let geometry: Geometry = backend.geometry();
    let session = connection.hello(&served.description, &geometry, served.takeover)?;
    let session = granted(device, session, served)?;
    let ready = |recovered| served.by.tell(Entry::Serving(recovered));
    let departure = session.serve_shared(backend, ready)?;
    // The holder lets others use the storage once it is told, so nothing must be under way.
    device.outstanding.wait_for_none();
    departure.leave();
    Ok(())
}

fn granted(device: &Arc<Device>, session: Session, served: &Served) -> Outcome<Session> {
    device.grant(session, || served.by.granted(device.number)).map_err(|(session, answer)| {
        let error = of_program(answer).err().unwrap_or_else(|| io::ErrorKind::Other.into());
        let failure = Failure::io("the program does not serve the device", &error);
        session.fail(&failure.message);
        failure
    })
}
