//! The plan of `mem:`.

use std::env;
use std::fs::File;
use std::sync::Arc;

use nbd_backend::Geometry;
use nbd_control::backend::HOLDER_FD;

use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened};
use crate::spec::{MemorySpec, Spec};
use crate::storage::file::{FileExport, FileKind};
use crate::storage::mem;

impl ExportPlan for MemorySpec {
    fn geometry(&self) -> Geometry {
        mem::geometry(*self)
    }

    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{}", mem::STORED_FD_NAME));
    }

    fn examine(&mut self, fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        inherit_memory(*self, fds).map(drop)
    }

    fn open_storage(self: Box<Self>, fds: &mut FdScope<'_>) -> Opened {
        let object = Spec::Memory(*self).to_string();
        let failed = |source| ExportError::Memory { object: object.clone(), source };
        let file = match inherit_memory(*self, fds)? {
            Some(file) => file,
            None => {
                self.tell();
                let file = mem::make(self.size).map_err(failed)?;
                fds.keep(mem::STORED_FD_NAME, &file)?;
                file
            }
        };
        let geometry = mem::geometry(*self);
        Ok(Arc::new(FileExport::new(file, object.into(), FileKind::Memory, false, geometry)))
    }

    /// Not to a holder: nbd-ctl has said it before it started one.
    fn tell(&self) {
        if env::var_os(HOLDER_FD).is_some() {
            return;
        }
        if let Some(shortage) = mem::shortage(self.size) {
            tracing::warn!("{}: {shortage}", Spec::Memory(*self));
        }
    }
}

fn inherit_memory(spec: MemorySpec, fds: &FdScope<'_>) -> Result<Option<File>, ExportError> {
    let Some(file) = fds.inherit(mem::STORED_FD_NAME)? else {
        return Ok(None);
    };
    let object = || Spec::Memory(spec).to_string();
    mem::check(&file, spec.size)
        .map_err(|source| ExportError::Memory { object: object(), source })?;
    Ok(Some(file))
}
