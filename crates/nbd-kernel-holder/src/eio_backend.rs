//! The EIO backend: a backend that executes nothing and answers every request with EIO.
//!
//! It is a program of its own, this one started again, because what answers must have the
//! lanes, and what has the lanes must be fenced like every backend: the holder can kill it and
//! see it dead. So nothing here knows of lanes or of the ledger; the engine does.

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use nbd_backend::{
    AsyncBackend, Backend, Capabilities, Completion, Endpoint, Geometry, HolderConnection, Task,
    chain,
};
use nbd_proto::NbdError;

struct EioBackend(Geometry);

impl EioBackend {
    /// The driver may send trims and zeroes that the device does not offer. They come here as well, and are
    /// not substituted by writes: a failed write with FUA is remembered like a failed flush.
    fn new(attached: Geometry) -> Self {
        let capabilities = Capabilities { trim: true, write_zeroes: true, ..attached.capabilities };
        Self(Geometry { capabilities, ..attached })
    }
}

impl Backend for EioBackend {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    fn write_at(&self, _data: &[u8], _offset: u64, _fua: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        Some(self)
    }
}

impl AsyncBackend for EioBackend {
    /// A flush that was not tried has lost nothing, so it is not remembered as one that failed.
    fn submit_async(&self, task: Box<dyn Task>) {
        task.finish(Completion::Error(NbdError::EIO));
    }
}

/// Serves the device whose holder has started this process.
pub(crate) fn run() -> ExitCode {
    // It is started by way of /proc, where its name is another one.
    let _ = nix::sys::prctl::set_name(c"nbd-stand-in");
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    let holder = HolderConnection::connect(&Endpoint::from_environment()?)?;
    let export = holder.attached().ok_or("only a holder may start this")?;
    let attached = Geometry::of(&export);
    let session = holder.hello("stand-in: EIO", &attached, false)?;
    session.serve(Arc::new(EioBackend::new(attached)))?;
    Ok(())
}
