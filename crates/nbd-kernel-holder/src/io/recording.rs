//! `nbd-ctl record`: backends are granted a file to which they write each request before they
//! execute it. The holder only hands it on.
//!
//! A recording begins with a backend's life: replayed, it makes a new process do what this one did.

use std::os::fd::OwnedFd;

use nbd_control::control::{Failure, FailureKind, Response};

use crate::core::{ClientId, Event, Order};
use crate::holder::Holder;
use crate::holder::recording::Recording;

impl Holder {
    pub(crate) fn order_recording(&mut self, id: ClientId, path: String, file: Option<OwnedFd>) {
        let name = self.device.name();
        if let Some(why) = self.core.why_not_beside_replacement() {
            return self.refuse_order(id, why);
        }
        let busy = |text: String| Response::Failed(Failure::new(FailureKind::Busy, text));
        if let Some(Recording { path, .. }) = &self.data.recording {
            let text =
                format!("{name} is being recorded to {path}: `nbd-ctl record --stop {name}` first");
            return self.answer(id, &busy(text));
        }
        let Some(file) = file else {
            return self.answer(id, &busy(format!("{name}: nbd-ctl sent no file")));
        };
        self.log(&format!("requests are recorded to {path}"));
        self.data.recording = Some(Recording { path, file });
        self.feed(Event::Order { client: id, order: Order::Record });
    }

    pub(crate) fn end_recording(&mut self, id: ClientId) {
        let name = self.device.name();
        let response = match self.data.recording.take() {
            None => {
                let text = format!("{name} is not being recorded");
                Response::Failed(Failure::new(FailureKind::Busy, text))
            }
            Some(Recording { path, .. }) => {
                self.log(&format!("requests are no longer recorded to {path}"));
                self.feed(Event::StateChanged);
                Response::Done { text: String::new() }
            }
        };
        self.answer(id, &response);
    }
}
