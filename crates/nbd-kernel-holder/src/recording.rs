//! `nbd-ctl record`: backends are granted a file to which they write each request before they
//! execute it. The holder only hands it on.
//!
//! A recording begins with a backend's life: replayed, it makes a new process do what this one did.

use std::os::fd::OwnedFd;
use std::path::Path;

use nbd_control::control::{Failure, FailureKind, Response};
use nbd_record::CaptureError;

use crate::control::Waits;
use crate::holder::Holder;
use crate::supervisor::Event;

/// What requests are written to.
#[derive(Debug)]
pub(crate) struct Recording {
    /// Absolute, for a holder that adopts the device.
    pub(crate) path: String,
    pub(crate) file: OwnedFd,
}

impl Recording {
    /// The recording of a holder that is gone.
    pub(crate) fn reopen(path: &str) -> Result<Self, CaptureError> {
        let file = nbd_record::capture::reopen(Path::new(path))?;
        Ok(Self { path: path.into(), file: file.into() })
    }
}

impl Holder {
    pub(crate) fn order_recording(&mut self, id: u64, path: String, file: Option<OwnedFd>) {
        let name = self.device.name();
        let under_way = self.recording.as_ref().map(|recording| {
            let path = &recording.path;
            format!("{name} is being recorded to {path}: `nbd-ctl record --stop {name}` first")
        });
        let refused = self.not_now().or_else(|| self.replacement_under_way()).or(under_way);
        let without = || Some(format!("{name}: no file came with the order"));
        let file = match (refused, file) {
            (None, Some(file)) => file,
            (refused, _) => {
                let text = refused.or_else(without).unwrap_or_default();
                let failure = Failure::new(FailureKind::Busy, text);
                return self.answer(id, &Response::Failed(failure));
            }
        };
        self.log(&format!("requests are recorded to {path}"));
        self.recording = Some(Recording { path, file });
        self.save_state();
        if let Some(when) = self.begins_later() {
            let text = format!("{name}: the recording begins {when}");
            return self.answer(id, &Response::Done { text });
        }
        self.await_for(id, Waits::Start);
        self.due = None;
        self.apply(&Event::Restart);
    }

    /// When, if not with a backend that is started now.
    fn begins_later(&self) -> Option<String> {
        let name = self.device.name();
        if self.supervisor.is_paused() {
            Some(format!("with `nbd-ctl resume {name}`"))
        } else if self.supervisor.has_joined() || self.settings.program.is_empty() {
            Some("once its backend, which joins from outside, is ended and run again".into())
        } else {
            None
        }
    }

    pub(crate) fn end_recording(&mut self, id: u64) {
        let name = self.device.name();
        let response = match self.recording.take() {
            None => {
                let text = format!("{name} is not being recorded");
                Response::Failed(Failure::new(FailureKind::Busy, text))
            }
            Some(Recording { path, .. }) => {
                self.log(&format!("requests are no longer recorded to {path}"));
                self.save_state();
                Response::Done { text: String::new() }
            }
        };
        self.answer(id, &response);
    }
}
