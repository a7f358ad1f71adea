//! A backend to be: its shape is known first; its storage when the holder has granted the lanes.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use nbd_backend::{Backend, ExportInfo, Geometry, JoinError, Session};
use nbd_client::Target;
use nbd_net::address::Address;
use thiserror::Error;

use crate::adopt::{self, AdoptError};
use crate::file::{FileExport, Kind};
use crate::mem::{self, MemoryError};
use crate::probe::{self, Probe, ProbeError};
use crate::remote::{RemoteError, RemoteExport};
use crate::size::Size;
use crate::spec::{MemorySpec, Spec};
use crate::vault;

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
    Remote(Box<RemoteExport>),
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
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("{device}: serves {was} and not {now} since it was attached: detach it first")]
    OtherKind { device: String, was: &'static str, now: &'static str },
    #[error("{device}: cannot take over the {name} that the predecessor left")]
    Duplicate { device: String, name: &'static str, source: std::io::Error },
    #[error("{device}: cannot deposit the {name} with the holder")]
    Keep { device: String, name: &'static str, source: JoinError },
}

impl Export {
    /// Looks at what is named. Nothing is changed by that.
    ///
    /// With `attached` it keeps to the shape that was attached where the storage can still serve
    /// it: a file that has grown since then is no reason to leave the device without a backend.
    pub(crate) fn open(spec: Spec, attached: Option<&ExportInfo>) -> Result<Self, ExportError> {
        let spec = absolute(spec);
        let description = spec.to_string();
        let source = match spec {
            Spec::Memory(memory) => Source::Memory(memory),
            Spec::File(file) => {
                let path = file.path.clone();
                let probe = probe::probe(file);
                let mut probe = probe.map_err(|source| ExportError::Probe { path, source })?;
                if let Some(attached) = attached {
                    agree(&mut probe, attached);
                }
                Source::File(Box::new(probe))
            }
            Spec::Remote(target) => Source::Remote(Box::new(RemoteExport::open(target, attached)?)),
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
            Source::Remote(remote) => remote.geometry(),
        }
    }

    /// Takes over what the predecessor left, or makes sure that there is something to leave.
    pub(crate) fn settle(self, session: &mut Session) -> Result<Arc<dyn Backend>, ExportError> {
        let geometry = self.geometry();
        check_kind(&self.source, session)?;
        let export = match self.source {
            Source::Remote(remote) => return Ok(remote.settle(session)?),
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
            Source::Remote(remote) => return Ok(remote.alone()),
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
    let complete = |path: &mut PathBuf| {
        if let Ok(absolute) = std::path::absolute(&*path) {
            *path = absolute;
        }
    };
    match &mut spec {
        Spec::File(file) => complete(&mut file.path),
        Spec::Remote(Target::Uri(uri)) => {
            uri.tls_certificates.as_mut().map(complete);
            match &mut uri.address {
                // Not a name in the abstract namespace.
                Address::Unix(path) if !path.as_os_str().as_bytes().starts_with(&[0]) => {
                    complete(path);
                }
                _ => {}
            }
        }
        Spec::Memory(_) | Spec::Remote(_) => {}
    }
    spec
}

fn agree(probe: &mut Probe, attached: &ExportInfo) {
    if probe.geometry.size > attached.size {
        probe.notes.push(format!(
            "has grown to {}; the device keeps its {}",
            Size(probe.geometry.size),
            Size(attached.size)
        ));
        probe.geometry.size = attached.size;
    }
}

fn tell(probe: &Probe) {
    for note in &probe.notes {
        eprintln!("nbd-serve: {}: {note}", probe.spec.path.display());
    }
}

fn settle_file(probe: &mut Probe, session: &mut Session) -> Result<File, ExportError> {
    let path = probe.spec.path.clone();
    let found = inherit(session, adopt::KEEPSAKE)?;
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
    if let Some(file) = inherit(session, mem::KEEPSAKE)? {
        mem::check(&file, spec.size).map_err(failed)?;
        return Ok(file);
    }
    let file = mem::make(spec.size).map_err(failed)?;
    deposit(session, mem::KEEPSAKE, &file)?;
    Ok(file)
}

/// A device stays what it was attached as; what that was shows in what is kept.
fn check_kind(source: &Source, session: &Session) -> Result<(), ExportError> {
    let now = match source {
        Source::File(_) => adopt::KEEPSAKE,
        Source::Memory(_) => mem::KEEPSAKE,
        Source::Remote(_) => vault::KEEPSAKES[0],
    };
    let kinds = [adopt::KEEPSAKE, mem::KEEPSAKE, vault::KEEPSAKES[0]];
    let was = kinds.into_iter().find(|kind| *kind != now && session.keepsake(kind).is_some());
    match was {
        Some(was) => {
            let device = session.device().into();
            Err(ExportError::OtherKind { device, was, now })
        }
        None => Ok(()),
    }
}

/// The predecessor's descriptor, if there was a predecessor.
fn inherit(session: &Session, name: &'static str) -> Result<Option<File>, ExportError> {
    let device = session.device();
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
