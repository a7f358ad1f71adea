//! The state that the threads of a client share.

use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use nbd_backend::{Geometry, chain};

use crate::connect::dialer::Dialer;
use crate::connection::pool::ConnectionPool;
use crate::job::buffer_pool::BufferPool;
use crate::options::Options;

/// The state that the threads of a client share.
pub(crate) struct Shared {
    pub(crate) dialer: Dialer,
    pub(crate) pool: ConnectionPool,
    pub(crate) options: Options,
    /// Of the device; known from the beginning, or from the first connection.
    pub(crate) geometry: OnceLock<Geometry>,
    pub(crate) buffers: Arc<BufferPool>,
    pub(crate) jobs: AtomicU64,
}

impl Shared {
    /// Stores a descriptor for a successor.
    pub(crate) fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        let Some(fd_store) = &self.options.fd_store else {
            return;
        };
        if let Err(error) = fd_store.keep(name, descriptor) {
            // The client can serve without it; only its successor cannot fence.
            self.log_info(&format!(
                "cannot deposit {name}, so a successor cannot fence it: {}",
                chain(&error)
            ));
        }
    }

    pub(crate) fn log_info(&self, text: &str) {
        tracing::info!("{}: {text}", self.dialer.name());
    }
}
