//! A plugin of nbdkit as an export: loaded at once, so that its parameters are checked, and opened for
//! its shape, or later, for one that is known.
//!
//! A successor must not open the storage before its predecessor is dead: the plugin may lock it, or
//! read what the predecessor is still changing. So it is told the shape of the device.

use std::io;
use std::sync::Arc;

use nbd_backend::{Backend, Geometry};
use nbd_client::check_change;
use nbd_nbdkit::{Plugin, PluginBackend};

use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened, ShapeHint};
use crate::spec::NbdkitSpec;

/// Plugins whose data lives in this process.
const VOLATILE: [&str; 3] = ["memory", "data", "tmpdisk"];

/// A plugin that is loaded.
#[derive(Debug)]
pub(crate) struct NbdkitPlan {
    spec: NbdkitSpec,
    plugin: Arc<Plugin>,
    geometry: Geometry,
    opened: Option<PluginBackend>,
    /// It was opened only to look at it.
    is_to_reopen: bool,
}

impl NbdkitPlan {
    /// Loads it, and opens it unless it is known what was attached.
    pub(crate) fn open(spec: NbdkitSpec, hint: ShapeHint<'_>) -> Result<Self, ExportError> {
        let failed = |source| ExportError::Nbdkit { plugin: spec.plugin.clone(), source };
        let plugin = Arc::new(Plugin::load(&spec.plugin, &spec.parameters).map_err(failed)?);
        let is_to_reopen = matches!(hint, ShapeHint::Reshaped);
        let (geometry, opened) = match hint {
            ShapeHint::Attached(attached) => (Geometry::of(attached), None),
            ShapeHint::Nothing | ShapeHint::Reshaped => {
                let opened = PluginBackend::open(&plugin, &spec.export_name).map_err(failed)?;
                warn_of_tail(&spec, &opened);
                (opened.geometry(), Some(opened))
            }
        };
        Ok(Self { spec, plugin, geometry, opened, is_to_reopen })
    }

    fn reopen(&self) -> Result<PluginBackend, ExportError> {
        let plugin = || self.spec.plugin.clone();
        let opened = PluginBackend::open(&self.plugin, &self.spec.export_name);
        let opened = opened.map_err(|source| ExportError::Nbdkit { plugin: plugin(), source })?;
        check_change(&self.geometry, &opened.geometry())
            .map_err(|source| ExportError::NbdkitChanged { plugin: plugin(), source })?;
        Ok(opened)
    }
}

impl ExportPlan for NbdkitPlan {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn clamp_size(&mut self, size: u64) {
        self.geometry.size = self.geometry.size.min(size);
    }

    /// A handle of its own, that is closed again, tells the size.
    fn grow(&mut self, _size: u64) -> Result<(), ExportError> {
        self.geometry.size = self.reopen()?.geometry().size;
        Ok(())
    }

    fn read_before_open(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.opened {
            Some(opened) => opened.read_at(buffer, offset),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn stored_fd_names(&self, _place: &str, _names: &mut Vec<String>) {}

    fn loses_writes(&self) -> Option<String> {
        let is_volatile = VOLATILE.contains(&self.spec.plugin.as_str());
        (is_volatile && !self.geometry.capabilities.read_only).then(|| self.spec.to_string())
    }

    fn open_storage(mut self: Box<Self>, _fds: &mut FdScope<'_>) -> Opened {
        // Dropped before the next one is opened: the predecessor may have changed what it knows.
        let opened = self.opened.take().filter(|_| !self.is_to_reopen);
        let opened = match opened {
            Some(opened) => opened,
            None => self.reopen()?,
        };
        Ok(Arc::new(opened.with_geometry(self.geometry)))
    }
}

fn warn_of_tail(spec: &NbdkitSpec, opened: &PluginBackend) {
    let (tail, block) = (opened.tail(), opened.geometry().block_size);
    if tail > 0 {
        tracing::warn!(
            "{spec}: its last {tail} bytes are not part of the device, whose size is a multiple of {block}"
        );
    }
}
