//! Write a block device: implement [`Backend`], call [`run`], attach it with
//! `nbd-ctl attach -- YOUR-PROGRAM`.
//!
//! The program may crash, be killed, stop at a breakpoint or be replaced by a newer build at any
//! time; the device only waits. The engine keeps the state of all requests in the
//! [ledger](nbd_ledger), and a successor executes again what was not answered. So a backend needs
//! no recovery code, as long as answered writes are in its storage and not only in its memory.
//! Memory that must survive is a memfd that the holder stores: [`Session::keep`].
//!
//! What a backend may offer to be faster are traits of their own: [`InlineBackend`],
//! [`MappedBackend`], [`AsyncBackend`].
//!
//! A started backend finds its holder through the environment. One that is run by hand, under a
//! debugger perhaps, names the device: `NBD_JOIN=nbd0 gdb --args ./my-backend`, with `NBD_TAKEOVER=1`
//! if it is to replace a living backend. Or it names a capture of `nbd-ctl record`, and gets the same requests again without any device:
//! `NBD_REPLAY=crash.nbdrec gdb --args ./my-backend`.
//!
//! Problems are reported as events of `tracing`. [`run`] prints them. A program that does not call
//! it must install a subscriber, or the events are lost.

mod backend;
mod clock;
mod engine;
mod execution;
mod join;
mod lane;
mod panics;
mod system;
mod warmup;

pub use backend::durability::{Durability, ProcessDurability, remember};
pub use backend::{
    AsyncBackend, Backend, Capabilities, Completion, Extent, Geometry, InlineBackend,
    MappedBackend, MappedRange, MappingOwner, NeverBlocks, Task, ZeroOptions,
};
pub use clock::now;
pub use engine::{Outcome, ServeError};
pub use execution::{
    Dispatcher, ReceivedRequest, ReplySink, Room, Workers, execute_inline, reply_error,
};
pub use join::{
    Departure, ENVIRONMENT, Endpoint, HolderConnection, JOIN_VARIABLE, JoinError, Session, Stored,
    TAKEOVER_VARIABLE,
};
pub use lane::busy_poll::BusyPoll;
pub use nbd_control::backend::ExportInfo;
pub use nbd_control::system_error::chain;
pub use nbd_proto::Command;
pub use panics::AbortOnPanic;
pub use system::request_flusher_privileges;
pub use warmup::{warm_up, warm_up_process};

use std::process::ExitCode;
use std::sync::Arc;

/// Serves `backend` until its device is detached: connects to the holder that the environment
/// names, and reports errors on stderr, or to the program's `tracing` subscriber if it has one.
/// Most backends need nothing else in `main`.
///
/// `description` is shown to operators; by convention it starts with a word and a colon.
pub fn run(description: &str, backend: impl Backend) -> ExitCode {
    let program = std::env::args_os().next().map(std::path::PathBuf::from).unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    nbd_log::init(&program, None, nbd_log::Output::Stderr);
    let serve = || -> Result<(), Box<dyn std::error::Error>> {
        let holder = HolderConnection::connect(&Endpoint::from_environment()?)?;
        warm_up(&holder);
        let session = holder.hello(description, &backend.geometry(), false)?;
        session.serve(Arc::new(backend))?;
        Ok(())
    };
    let code = match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{description}: {}", chain(&*error));
            ExitCode::FAILURE
        }
    };
    nbd_log::finish();
    code
}
