//! A backend to be: its shape is known first; its storage when the holder has granted the lanes.

mod connection_store;
mod cow;
pub(crate) mod error;
pub(crate) mod fd_store;
mod file;
mod memory;
mod nbdkit;
pub(crate) mod open;
pub(crate) mod plan;
mod rbd;
mod record;
mod remote;
mod subrange;
mod synthetic;
mod wrapped;

use std::sync::Arc;

use nbd_backend::{Backend, ExportInfo, Geometry, Stored};

use crate::spec::Spec;
use error::ExportError;
use fd_store::{FdScope, FdStore, NoFdStore};
use plan::{ExportPlan, ShapeHint};

/// What a specification comes to on this machine.
#[derive(Debug)]
pub(crate) struct Export {
    description: String,
    plan: Box<dyn ExportPlan>,
}

impl Export {
    /// Looks at what is named. Nothing is changed by that.
    ///
    /// What is `attached` is the shape for what need not or must not be looked at again.
    pub(crate) fn open(spec: Spec, attached: Option<&ExportInfo>) -> Result<Self, ExportError> {
        let spec = spec.absolute();
        let description = spec.to_string();
        let hint = attached.map_or(ShapeHint::Nothing, ShapeHint::Attached);
        Ok(Self { description, plan: open::open(spec, hint)? })
    }

    /// What is served, for people.
    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.plan.geometry()
    }

    /// Keeps to the shape that was attached where the storage can still serve it: a file that has
    /// grown since then is no reason to leave the device without a backend.
    pub(crate) fn clamp_size(&mut self, attached: &ExportInfo) {
        self.plan.clamp_size(attached.size);
    }

    /// Looks how large it is by now, for a device that is to grow.
    pub(crate) fn grow(&mut self, attached: &ExportInfo) -> Result<(), ExportError> {
        self.plan.grow(attached.size)
    }

    /// Checks that it fits what a predecessor that lives has left. Nothing is changed by that.
    ///
    /// # Errors
    /// It could not take over from that predecessor.
    pub(crate) fn examine(&mut self, mut stored: Stored) -> Result<(), ExportError> {
        let mut names = Vec::new();
        self.plan.stored_fd_names("", &mut names);
        let mut fds = FdScope::examined(&mut stored, &names)?;
        self.plan.examine(&mut fds)
    }

    /// Takes over what the predecessor left, or makes sure that there is something to leave.
    pub(crate) fn open_storage(
        self,
        store: &mut dyn FdStore,
    ) -> Result<Arc<dyn Backend>, ExportError> {
        let (mut names, mut settings) = (Vec::new(), Vec::new());
        self.plan.stored_fd_names("", &mut names);
        self.plan.settings(&mut settings);
        let mut fds = FdScope::new(store, &names, &settings)?;
        self.plan.open_storage(&mut fds)
    }

    /// Serves it without a holder: there is neither predecessor nor successor.
    pub(crate) fn alone(self) -> Result<Arc<dyn Backend>, ExportError> {
        self.open_storage(&mut NoFdStore)
    }

    /// Checks that what is written survives this process, as a device needs it.
    pub(crate) fn check_keeps_writes(&self) -> Result<(), ExportError> {
        self.plan.loses_writes().map_or(Ok(()), |what| Err(ExportError::LosesWrites(what)))
    }

    /// Tells the operator on stderr what is worth knowing.
    pub(crate) fn tell(&self) {
        self.plan.tell();
    }
}
