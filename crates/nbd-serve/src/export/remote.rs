//! Somebody else's server as an export: connected to for its shape, or later, for one that is known.
//!
//! A successor must not connect before its predecessor is dead: the server may admit one client
//! only, and a program that is started would find its storage in use. It is told the shape of the
//! device that was attached, and connects when it has been granted the lanes, after everything is
//! fenced that the predecessor had sent.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nbd_backend::{Backend, Geometry};
use nbd_client::{Options, Remote, Target};

use crate::export::connection_store::{ConnectionStore, STORED_FD_NAMES};
use crate::export::error::RemoteError;
use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened, ShapeHint};

/// A server that is connected to, or will be.
#[derive(Debug)]
pub(crate) struct RemotePlan {
    target: Target,
    geometry: Geometry,
    connected: Option<(Remote, Arc<ConnectionStore>)>,
}

impl RemotePlan {
    /// Connects, unless it is known what was attached.
    pub(crate) fn open(target: Target, hint: ShapeHint<'_>) -> Result<Self, RemoteError> {
        match hint {
            ShapeHint::Attached(attached) => {
                let geometry = Geometry::of(attached);
                return Ok(Self { target, geometry, connected: None });
            }
            ShapeHint::Reshaped => return Err(RemoteError::Reshaped(target.to_string())),
            ShapeHint::Nothing => {}
        }
        let store = Arc::new(ConnectionStore::new().map_err(RemoteError::Make)?);
        let remote = Remote::connect(target.clone(), keeping(&store))?;
        Ok(Self { target, geometry: remote.geometry(), connected: Some((remote, store)) })
    }

    fn succeed(self, inlet: OwnedFd, outlet: OwnedFd) -> Result<Arc<dyn Backend>, RemoteError> {
        // Whatever we are connected to, what the predecessor has sent comes first.
        drop(self.connected);
        let store = Arc::new(ConnectionStore::of(inlet, outlet));
        let left = store.contents().map_err(RemoteError::Inherit)?;
        let remote = Remote::for_geometry(self.target, keeping(&store), self.geometry);
        remote.begin(left);
        Ok(Arc::new(remote))
    }
}

impl ExportPlan for RemotePlan {
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

    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>) {
        names.extend(STORED_FD_NAMES.map(|name| format!("{place}{name}")));
    }

    /// Takes over the predecessor's place, or deposits one with the holder.
    fn open_storage(self: Box<Self>, fds: &mut FdScope<'_>) -> Opened {
        let (inlet, outlet) = (fds.inherit(STORED_FD_NAMES[0])?, fds.inherit(STORED_FD_NAMES[1])?);
        if let (Some(inlet), Some(outlet)) = (inlet, outlet) {
            return Ok(self.succeed(inlet.into(), outlet.into())?);
        }
        let (remote, store) = match self.connected {
            Some(connected) => connected,
            None => {
                let store = Arc::new(ConnectionStore::new().map_err(RemoteError::Make)?);
                (Remote::for_geometry(self.target, keeping(&store), self.geometry), store)
            }
        };
        for (name, end) in STORED_FD_NAMES.iter().zip(store.ends()) {
            fds.keep(name, &end)?;
        }
        Ok(Arc::new(remote))
    }
}

fn keeping(store: &Arc<ConnectionStore>) -> Options {
    Options { fd_store: Some(Arc::clone(store) as _), ..Options::default() }
}
