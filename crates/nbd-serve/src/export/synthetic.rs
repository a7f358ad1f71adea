//! The plan of an export that is not stored anywhere.

use std::fmt;
use std::sync::Arc;

use nbd_backend::{Backend, Geometry};

use crate::export::plan::{ExportPlan, FdScope, Opened};

/// Something that is not stored anywhere.
pub(crate) struct Synthetic(pub(crate) Geometry, pub(crate) fn(Geometry) -> Arc<dyn Backend>);

impl fmt::Debug for Synthetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Synthetic").field(&self.0).finish()
    }
}

impl ExportPlan for Synthetic {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn stored_fd_names(&self, _place: &str, _names: &mut Vec<String>) {}

    fn open_storage(self: Box<Self>, _fds: &mut FdScope<'_>) -> Opened {
        Ok((self.1)(self.0))
    }
}
