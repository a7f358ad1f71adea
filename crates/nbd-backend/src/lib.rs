//! Write a block device: implement [`Backend`], call [`run`], attach it with
//! `nbd-ctl attach -- YOUR-PROGRAM`.
//!
//! The program may crash, be killed, sit at a breakpoint or be replaced by a newer build at any
//! moment; the device only waits. The engine keeps all it knows about requests in the
//! [ledger](nbd_ledger), and a successor executes again what was not answered. So a backend needs
//! no recovery code, as long as what it answered is in its storage and not only in its memory.
//! Memory that must survive is a memfd deposited with the holder: [`Session::keep`].
//!
//! A started backend finds its holder through the environment. One that is run by hand, under a
//! debugger perhaps, names the device: `NBD_JOIN=nbd0 gdb --args ./my-backend`. Or a recording of
//! `nbd-ctl record`, and gets the same requests again without any device:
//! `NBD_REPLAY=crash.nbdrec gdb --args ./my-backend`.
//!
//! What goes wrong is told as events of `tracing`. [`run`] prints them; a program that does without it
//! has to make itself a subscriber, or hears nothing.

mod backend;
mod clock;
mod durability;
mod engine;
mod inheritance;
mod join;
mod lane;
mod lull;
mod recorder;
mod rehearsal;
mod replay;
mod span;
mod system;
mod task;
mod unoffered;
mod vigil;
mod workers;

pub use backend::{Backend, Capabilities, Extent, Geometry, ZeroOptions};
pub use clock::now;
pub use durability::{Durability, ProcessDurability, remember};
pub use engine::{Outcome, ServeError};
pub use join::{ENVIRONMENT, Endpoint, JOIN_VARIABLE, JoinError, Link, Session, Stored};
pub use lane::AbortOnPanic;
pub use lull::Lull;
pub use nbd_control::backend::ExportInfo;
pub use nbd_proto::Command;
pub use rehearsal::rehearse;
pub use span::{Lender, Span};
pub use task::{Completion, Task, inline, patiently};
pub use vigil::Vigil;
pub use workers::Workers;

use std::process::ExitCode;
use std::sync::Arc;

/// Serves `backend` until its device is detached: connects to the holder that the environment
/// names, and reports errors on stderr, unless the program has a subscriber of `tracing`'s to tell
/// them to. All of `main` for most backends.
///
/// `description` tells people what is served; it starts with a word and a colon by custom.
pub fn run(description: &str, backend: impl Backend) -> ExitCode {
    let program = std::env::args_os().next().map(std::path::PathBuf::from).unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    nbd_log::init(&program, None, nbd_log::Output::Stderr);
    let serve = || -> Result<(), Box<dyn std::error::Error>> {
        let link = Link::connect(&Endpoint::from_environment()?)?;
        rehearse(&link);
        let session = link.hello(description, &backend.geometry(), false)?;
        session.serve(Arc::new(backend))?;
        Ok(())
    };
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{description}: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
