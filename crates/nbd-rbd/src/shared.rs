//! What the threads of a backend share, and the loss of the image to another client.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::extents::ExtentList;
use crate::lock::{Record, RecordStore};
use crate::sys::errno::Errno;
use crate::sys::image::Image;
use crate::sys::process;

/// Buffers for reads that are kept for the next ones: so many, and none that is larger.
const MAX_BUFFERS: usize = 64;
const MAX_BUFFER_BYTES: usize = 1 << 20;

/// How long a close waits for the cluster.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What happens when another client has taken the image away.
#[derive(Clone, Copy, Debug)]
pub enum OnLoss {
    /// This process ends without answering, after a last call of this. The device holds, or fails, as its
    /// operator has said.
    EndProcess(fn()),
    /// Every request fails with ESHUTDOWN.
    FailRequests,
}

/// What the threads of a backend share.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) image: Image,
    pub(crate) has_extents: bool,
    /// The smaller one of the device's size and the image's.
    pub(crate) limit: AtomicU64,
    pub(crate) record: Option<Arc<dyn RecordStore>>,
    pub(crate) on_loss: OnLoss,
    pub(crate) is_lost: AtomicBool,
    pub(crate) buffers: Mutex<Vec<Vec<u8>>>,
}

impl Shared {
    /// A buffer of this length, with anything in it.
    pub(crate) fn take_buffer(&self, length: usize) -> Vec<u8> {
        let buffer = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = buffer.unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    pub(crate) fn put_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_kept = (1..=MAX_BUFFER_BYTES).contains(&buffer.capacity());
        if is_kept && buffers.len() < MAX_BUFFERS {
            buffers.push(buffer);
        }
    }

    /// Closes the image, if the cluster does that in time; whether it did.
    pub(crate) fn close(&self) -> bool {
        let is_closed = self.image.close(CLOSE_TIMEOUT);
        if !is_closed {
            process::leave_open();
            let (name, seconds) = (&self.name, CLOSE_TIMEOUT.as_secs());
            tracing::warn!("{name}: the cluster has not closed the image within {seconds} s");
        }
        is_closed
    }

    /// Whether the image still reaches so far: librbd cuts off what lies behind its end without a word.
    pub(crate) fn reaches(&self, offset: u64, length: u64) -> bool {
        offset + length <= self.limit.load(Ordering::Acquire)
    }

    /// Finds out about the loss of the image from an error of it. Does not return if this process is to
    /// end; else the client gets what is returned.
    pub(crate) fn examine(&self, error: Errno) -> io::Error {
        match error.0 {
            libc::ESHUTDOWN => self.lost(true),
            // Without the lock, librbd refuses to write. Whether another client has the image, or librbd
            // only could not get its lock back, is for a successor to find out.
            libc::EROFS if self.record.is_some() => self.lost(false),
            _ => return error.into(),
        }
        io::Error::from_raw_os_error(libc::ESHUTDOWN)
    }

    fn lost(&self, is_shut_out: bool) {
        if self.is_lost.swap(true, Ordering::AcqRel) {
            // The thread that was first ends this process, and no request may be answered before.
            while let OnLoss::EndProcess(_) = self.on_loss {
                std::thread::park();
            }
            return;
        }
        let name = &self.name;
        if is_shut_out {
            tracing::error!(
                "{name}: this client was shut out of the cluster (osd blocklist), because another one has \
                 taken the image, or an operator did it: nothing is written any more"
            );
            if let Some(Err(error)) = self.record.as_ref().map(|kept| kept.save(&Record::Lost)) {
                tracing::error!("{name}: cannot note for a successor that it is lost: {error}");
            }
        } else {
            tracing::error!(
                "{name}: this client has lost the exclusive lock, so nothing is written any more: `rbd lock \
                 ls` shows who has it"
            );
        }
        if let OnLoss::EndProcess(before) = self.on_loss {
            before();
            process::end(1);
        }
    }

    /// The allocated and the empty parts of a range; if that cannot be told, all is allocated.
    pub(crate) fn extents(&self, offset: u64, length: u64, one: bool) -> Vec<nbd_backend::Extent> {
        if self.has_extents {
            match self.image.diff(offset, length) {
                Ok(allocated) => return ExtentList::of(offset, length, allocated).finish(one),
                Err(error) => {
                    let name = &self.name;
                    tracing::warn!(
                        "{name}: cannot tell what is allocated, so all counts as such: {error}"
                    );
                }
            }
        }
        vec![nbd_backend::Extent { length, hole: false, zero: false }]
    }

    /// The image has changed.
    pub(crate) fn check_size(&self, device: u64) {
        let size = match self.image.size() {
            Ok(size) => size,
            Err(error) => return tracing::warn!("{}: cannot read its size: {error}", self.name),
        };
        let limit = size.min(device);
        let before = self.limit.swap(limit, Ordering::AcqRel);
        let name = &self.name;
        if limit < before {
            tracing::error!(
                "{name}: the image has shrunk to {size} bytes, below the {device} of the device: requests \
                 beyond its end fail"
            );
        } else if size > device {
            tracing::info!(
                "{name}: the image has {size} bytes by now; `nbd-ctl resize --to-backend` gives them to the \
                 device"
            );
        }
    }
}
