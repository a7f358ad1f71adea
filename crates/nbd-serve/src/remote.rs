//! Somebody else's server as an export: connected to for its shape, or later, for one that is known.
//!
//! A successor must not connect before its predecessor is dead: the server may admit one client
//! only, and a program that is started would find its storage in use. It is told the shape of the
//! device that was attached, and connects when it has been granted the lanes, after everything is
//! fenced that the predecessor had sent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nbd_backend::{Backend, Geometry};
use nbd_client::{ClientError, Options, Remote, Target};
use thiserror::Error;

use crate::estate::Estate;
use crate::export::ExportError;
use crate::source::{Known, Source};
use crate::vault::{KEEPSAKES, Vault};

/// Why a server cannot be used.
#[derive(Debug, Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot make a place to keep connections in")]
    Make(#[source] io::Error),
    #[error("cannot take over the connections that the predecessor left")]
    Inherit(#[source] io::Error),
    #[error(
        "{0}: partition, offset and cow need to know what is below them before it is theirs, and \
         another server is connected to only then: have the server itself do that"
    )]
    Reshaped(String),
}

/// A server that is connected to, or will be.
#[derive(Debug)]
pub(crate) struct RemoteExport {
    target: Target,
    geometry: Geometry,
    connected: Option<(Remote, Arc<Vault>)>,
}

impl RemoteExport {
    /// Connects, unless it is known what was attached.
    pub(crate) fn open(target: Target, known: Known<'_>) -> Result<Self, RemoteError> {
        match known {
            Known::Attached(attached) => {
                let geometry = Geometry::of(attached);
                return Ok(Self { target, geometry, connected: None });
            }
            Known::Reshaped => return Err(RemoteError::Reshaped(target.to_string())),
            Known::Nothing => {}
        }
        let vault = Arc::new(Vault::new().map_err(RemoteError::Make)?);
        let remote = Remote::connect(target.clone(), keeping(&vault))?;
        Ok(Self { target, geometry: remote.geometry(), connected: Some((remote, vault)) })
    }

    fn succeed(self, inlet: OwnedFd, outlet: OwnedFd) -> Result<Arc<dyn Backend>, RemoteError> {
        // Whatever we are connected to, what the predecessor has sent comes first.
        drop(self.connected);
        let vault = Arc::new(Vault::of(inlet, outlet));
        let left = vault.contents().map_err(RemoteError::Inherit)?;
        let remote = Remote::for_geometry(self.target, keeping(&vault), self.geometry);
        remote.begin(left);
        Ok(Arc::new(remote))
    }
}

impl Source for RemoteExport {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A connection of its own, that is closed again, tells the size. One that is in use may go on
    /// telling the old one.
    fn grow(&mut self, _size: u64) -> Result<(), ExportError> {
        if matches!(self.target, Target::Program(_)) {
            // A second program would find its storage in use.
            return Ok(());
        }
        let looking = Remote::connect(self.target.clone(), Options::default());
        self.geometry.size = looking.map_err(RemoteError::Client)?.geometry().size;
        Ok(())
    }

    fn keepsakes(&self, place: &str, names: &mut Vec<String>) {
        names.extend(KEEPSAKES.map(|name| format!("{place}{name}")));
    }

    /// Takes over the predecessor's place, or deposits one with the holder.
    fn settle(self: Box<Self>, estate: &mut Estate<'_>) -> Result<Arc<dyn Backend>, ExportError> {
        let (inlet, outlet) = (estate.inherit(KEEPSAKES[0])?, estate.inherit(KEEPSAKES[1])?);
        if let (Some(inlet), Some(outlet)) = (inlet, outlet) {
            return Ok(self.succeed(inlet.into(), outlet.into())?);
        }
        let (remote, vault) = match self.connected {
            Some(connected) => connected,
            None => {
                let vault = Arc::new(Vault::new().map_err(RemoteError::Make)?);
                (Remote::for_geometry(self.target, keeping(&vault), self.geometry), vault)
            }
        };
        for (name, end) in KEEPSAKES.iter().zip(vault.ends()) {
            estate.keep(name, &end)?;
        }
        Ok(Arc::new(remote))
    }
}

fn keeping(vault: &Arc<Vault>) -> Options {
    Options { fd_store: Some(Arc::clone(vault) as _), ..Options::default() }
}
