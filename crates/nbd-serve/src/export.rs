//! A backend to be: its shape is known first; its storage when the holder has granted the lanes.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nbd_backend::{Backend, ExportInfo, Geometry, JoinError, Session};
use thiserror::Error;

use crate::adopt::{self, AdoptError};
use crate::file::{FileExport, Kind};
use crate::mem::{self, MemoryError};
use crate::probe::{self, Probe, ProbeError};
use crate::size::Size;
use crate::spec::{MemorySpec, Spec};

/// What a specification comes to on this machine.
#[derive(Debug)]
pub(crate) struct Export {
    description: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(Box<Probe>),
    Memory(MemorySpec),
}

/// Why something cannot be served.
#[derive(Debug, Error)]
pub(crate) enum ExportError {
    #[error("{}", .path.display())]
    Probe { path: PathBuf, source: ProbeError },
    #[error("{}", .path.display())]
    Adopt { path: PathBuf, source: AdoptError },
    #[error("{object}")]
    Memory { object: String, source: MemoryError },
    #[error("{device}: serves {was} and not {now} since it was attached: detach it first")]
    OtherKind { device: String, was: &'static str, now: &'static str },
    #[error("{device}: cannot take over the {name} that the predecessor left")]
    Duplicate { device: String, name: &'static str, source: std::io::Error },
    #[error("{device}: cannot deposit the {name} with the holder")]
    Keep { device: String, name: &'static str, source: JoinError },
}

impl Export {
    /// Looks at what is named. Nothing is changed by that.
    pub(crate) fn open(spec: Spec) -> Result<Self, ExportError> {
        let spec = absolute(spec);
        let description = spec.to_string();
        let source = match spec {
            Spec::Memory(memory) => Source::Memory(memory),
            Spec::File(file) => {
                let path = file.path.clone();
                match probe::probe(file) {
                    Ok(probe) => Source::File(Box::new(probe)),
                    Err(source) => return Err(ExportError::Probe { path, source }),
                }
            }
        };
        Ok(Self { description, source })
    }

    /// What is served, for people.
    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    pub(crate) fn geometry(&self) -> Geometry {
        match &self.source {
            Source::File(probe) => probe.geometry,
            Source::Memory(spec) => mem::geometry(*spec),
        }
    }

    /// Keeps to the shape that was attached where the storage can still serve it: a file that has
    /// grown since then is no reason to leave the device without a backend.
    pub(crate) fn agree(&mut self, attached: &ExportInfo) {
        let Source::File(probe) = &mut self.source else {
            return;
        };
        if probe.geometry.size > attached.size {
            probe.notes.push(format!(
                "has grown to {}; the device keeps its {}",
                Size(probe.geometry.size),
                Size(attached.size)
            ));
            probe.geometry.size = attached.size;
        }
    }

    /// Takes over what the predecessor left, or makes sure that there is something to leave.
    pub(crate) fn settle(self, session: &mut Session) -> Result<Arc<dyn Backend>, ExportError> {
        let geometry = self.geometry();
        let export = match self.source {
            Source::Memory(spec) => {
                let file = settle_memory(spec, &self.description, session)?;
                let path = self.description.into();
                FileExport::new(file, path, Kind::Memory, false, geometry)
            }
            Source::File(mut probe) => {
                let file = settle_file(&mut probe, session);
                tell(&probe);
                let Probe { spec, kind, .. } = *probe;
                FileExport::new(file?, spec.path, kind, spec.direct, geometry)
            }
        };
        Ok(Arc::new(export))
    }

    /// Serves it without a holder: there is neither predecessor nor successor.
    pub(crate) fn alone(self) -> Result<Arc<dyn Backend>, ExportError> {
        let geometry = self.geometry();
        let export = match self.source {
            Source::Memory(spec) => {
                let object = self.description.clone();
                let file = mem::make(spec.size)
                    .map_err(|source| ExportError::Memory { object, source })?;
                FileExport::new(file, self.description.into(), Kind::Memory, false, geometry)
            }
            Source::File(mut probe) => {
                let file = adopt::first(&mut probe);
                tell(&probe);
                let Probe { spec, kind, .. } = *probe;
                let failed = |source| ExportError::Adopt { path: spec.path.clone(), source };
                FileExport::new(file.map_err(failed)?, spec.path, kind, spec.direct, geometry)
            }
        };
        Ok(Arc::new(export))
    }

    /// Tells the operator on stderr what is worth knowing.
    pub(crate) fn tell(&self) {
        if let Source::File(probe) = &self.source {
            tell(probe);
        }
    }
}

/// Relative paths mean nothing to those who read about them elsewhere.
fn absolute(mut spec: Spec) -> Spec {
    if let Spec::File(file) = &mut spec
        && let Ok(path) = std::path::absolute(&file.path)
    {
        file.path = path;
    }
    spec
}

fn tell(probe: &Probe) {
    for note in &probe.notes {
        eprintln!("nbd-serve: {}: {note}", probe.spec.path.display());
    }
}

fn settle_file(probe: &mut Probe, session: &mut Session) -> Result<File, ExportError> {
    let path = probe.spec.path.clone();
    let found = inherit(session, adopt::KEEPSAKE, mem::KEEPSAKE)?;
    let failed = |source| ExportError::Adopt { path, source };
    if let Some(file) = found {
        adopt::check(probe, &file).map_err(failed)?;
        return Ok(file);
    }
    let file = adopt::first(probe).map_err(failed)?;
    deposit(session, adopt::KEEPSAKE, &file)?;
    Ok(file)
}

fn settle_memory(
    spec: MemorySpec,
    object: &str,
    session: &mut Session,
) -> Result<File, ExportError> {
    let failed = |source| {
        let object = object.into();
        ExportError::Memory { object, source }
    };
    if let Some(file) = inherit(session, mem::KEEPSAKE, adopt::KEEPSAKE)? {
        mem::check(&file, spec.size).map_err(failed)?;
        return Ok(file);
    }
    let file = mem::make(spec.size).map_err(failed)?;
    deposit(session, mem::KEEPSAKE, &file)?;
    Ok(file)
}

/// The predecessor's descriptor, if there was a predecessor.
fn inherit(
    session: &Session,
    name: &'static str,
    other: &'static str,
) -> Result<Option<File>, ExportError> {
    let device = session.device();
    if session.keepsake(other).is_some() {
        return Err(ExportError::OtherKind { device: device.into(), was: other, now: name });
    }
    let duplicate = session.keepsake(name).map(|fd| fd.try_clone_to_owned());
    let duplicate = duplicate.transpose().map_err(|source| {
        let device = device.into();
        ExportError::Duplicate { device, name, source }
    })?;
    Ok(duplicate.map(|fd: OwnedFd| fd.into()))
}

fn deposit(session: &mut Session, name: &'static str, file: &File) -> Result<(), ExportError> {
    session.keep(name, file.as_fd()).map_err(|source| {
        let device = session.device().into();
        ExportError::Keep { device, name, source }
    })
}
