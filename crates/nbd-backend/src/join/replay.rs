//! A capture in place of a holder: a thread of this process takes the part of the holder and the
//! kernel, so that a debugger sees one process, with the backend's own terminal.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};

use nbd_control::system_error::chain;
use nbd_record::{Capture, CaptureError, ReplayOptions, program};

use super::error::JoinError;

/// A capture that is being replayed.
#[derive(Debug)]
pub(crate) struct Replay(JoinHandle<String>);

impl Replay {
    /// Starts to replay. The stream leads to the thread that takes the part of the holder.
    pub(crate) fn begin(path: &Path, one_by_one: bool) -> Result<(UnixStream, Self), JoinError> {
        let failed = |source: CaptureError| JoinError::Recording { path: path.into(), source };
        let file = File::open(path).map_err(|error| failed(error.into()))?;
        let recording = Capture::read(file).map_err(failed)?;
        let (backend, holder) = UnixStream::pair().map_err(|error| failed(error.into()))?;
        let options = ReplayOptions { one_by_one, ..ReplayOptions::default() };
        let player =
            thread::Builder::new().name("replay".into()).spawn(move || {
                match program::serve(holder, &recording, &options) {
                    Ok(report) => report.describe(&recording),
                    Err(error) => chain(&error),
                }
            });
        let player = player.map_err(|error| failed(error.into()))?;
        Ok((backend, Self(player)))
    }

    /// Waits until all is answered, and logs the result.
    pub(crate) fn end(self) {
        if let Ok(words) = self.0.join() {
            tracing::info!("{words}");
        }
    }
}
