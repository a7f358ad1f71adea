//! Plans of layers that leave the data where it is: `readonly@` and those with options.

use std::fmt;
use std::io;
use std::sync::Arc;

use nbd_backend::{Capabilities, Geometry};
use nbd_control::settings::Setting;

use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened};
use crate::layers;
use crate::layers::layer_option::Schema;
use crate::layers::layered::Layered;

/// Refuses to be written to.
pub(crate) fn read_only(inner: Box<dyn ExportPlan>) -> Box<dyn ExportPlan> {
    Box::new(WrappedPlan { inner, wrap: Wrap::ReadOnly })
}

/// Does what a schema is for around each command.
pub(crate) fn configurable(
    inner: Box<dyn ExportPlan>,
    schema: &'static Schema,
    values: Vec<u64>,
) -> Box<dyn ExportPlan> {
    Box::new(WrappedPlan { inner, wrap: Wrap::Configurable(schema, values) })
}

/// A layer that changes nothing of where the data is: so a successor may come with it or without.
struct WrappedPlan {
    inner: Box<dyn ExportPlan>,
    wrap: Wrap,
}

enum Wrap {
    ReadOnly,
    Configurable(&'static Schema, Vec<u64>),
}

impl fmt::Debug for WrappedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappedPlan").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl ExportPlan for WrappedPlan {
    fn geometry(&self) -> Geometry {
        let geometry = self.inner.geometry();
        match self.wrap {
            Wrap::Configurable(..) => geometry,
            Wrap::ReadOnly => {
                let can = geometry.capabilities;
                let capabilities = Capabilities {
                    read_only: true,
                    cache: can.cache,
                    extents: can.extents,
                    unaligned: can.unaligned,
                    rotational: can.rotational,
                    ..Capabilities::default()
                };
                Geometry { capabilities, ..geometry }
            }
        }
    }

    fn clamp_size(&mut self, size: u64) {
        self.inner.clamp_size(size);
    }

    fn grow(&mut self, size: u64) -> Result<(), ExportError> {
        self.inner.grow(size)
    }

    fn read_before_open(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_before_open(buffer, offset)
    }

    fn settings(&self, all: &mut Vec<Setting>) {
        if let Wrap::Configurable(schema, values) = &self.wrap {
            let own = schema.settings(values, all);
            all.extend(own);
        }
        self.inner.settings(all);
    }

    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>) {
        self.inner.stored_fd_names(place, names);
    }

    fn examine(&mut self, fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        self.inner.examine(fds)
    }

    fn open_storage(self: Box<Self>, fds: &mut FdScope<'_>) -> Opened {
        let geometry = self.geometry();
        let Self { inner, wrap } = *self;
        match wrap {
            Wrap::ReadOnly => {
                Ok(Arc::new(Layered::subrange(inner.open_storage(fds)?, geometry, 0)))
            }
            Wrap::Configurable(schema, values) => {
                let options = fds.options(schema, values);
                let inner = inner.open_storage(fds)?;
                Ok(match options {
                    Some(options) => {
                        Arc::new(Layered::with(inner, layers::configurable(schema, options)))
                    }
                    None => inner,
                })
            }
        }
    }

    fn loses_writes(&self) -> Option<String> {
        match self.wrap {
            Wrap::ReadOnly => None,
            Wrap::Configurable(..) => self.inner.loses_writes(),
        }
    }

    fn tell(&self) {
        self.inner.tell();
    }
}
