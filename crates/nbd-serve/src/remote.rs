//! Somebody else's server as an export: connected to for its shape, or later, for one that is known.
//!
//! A successor must not connect before its predecessor is dead: the server may admit one client
//! only, and a program that is started would find its storage in use. It is told the shape of the
//! device that was attached, and connects when it has been granted the lanes, after everything is
//! fenced that the predecessor had sent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nbd_backend::{Backend, ExportInfo, Geometry, JoinError, Session};
use nbd_client::{ClientError, Options, Remote, Target};
use thiserror::Error;

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
    #[error("cannot deposit the connections with the holder")]
    Keep(#[source] JoinError),
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
    pub(crate) fn open(target: Target, attached: Option<&ExportInfo>) -> Result<Self, RemoteError> {
        if let Some(attached) = attached {
            let geometry = Geometry::of(attached);
            return Ok(Self { target, geometry, connected: None });
        }
        let vault = Arc::new(Vault::new().map_err(RemoteError::Make)?);
        let remote = Remote::connect(target.clone(), keeping(&vault))?;
        Ok(Self { target, geometry: remote.geometry(), connected: Some((remote, vault)) })
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Takes over the predecessor's place, or deposits one with the holder.
    pub(crate) fn settle(self, session: &mut Session) -> Result<Arc<dyn Backend>, RemoteError> {
        let [inlet, outlet] = KEEPSAKES.map(|name| session.keepsake(name));
        if let (Some(inlet), Some(outlet)) = (inlet, outlet) {
            let duplicate = |end: std::os::fd::BorrowedFd<'_>| end.try_clone_to_owned();
            let ends = duplicate(inlet).and_then(|inlet| Ok((inlet, duplicate(outlet)?)));
            let (inlet, outlet) = ends.map_err(RemoteError::Inherit)?;
            return self.succeed(inlet, outlet);
        }
        let (remote, vault) = match self.connected {
            Some(connected) => connected,
            None => {
                let vault = Arc::new(Vault::new().map_err(RemoteError::Make)?);
                (Remote::for_geometry(self.target, keeping(&vault), self.geometry), vault)
            }
        };
        for (name, end) in KEEPSAKES.iter().zip(vault.ends()) {
            session.keep(name, end).map_err(RemoteError::Keep)?;
        }
        Ok(Arc::new(remote))
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

    /// Serves it without a holder.
    pub(crate) fn alone(self) -> Arc<dyn Backend> {
        let Self { target, geometry, connected } = self;
        Arc::new(match connected {
            Some((remote, _)) => remote,
            None => Remote::for_geometry(target, Options::default(), geometry),
        })
    }
}

fn keeping(vault: &Arc<Vault>) -> Options {
    Options { custodian: Some(Arc::clone(vault) as _), ..Options::default() }
}
