//! Backends under names.

use std::fmt;
use std::sync::Arc;

use nbd_backend::{Backend, Capabilities, Durability, Geometry, ProcessDurability, Workers};
use nbd_proto::handshake::{ExportList, Offer, Refusal};
use nbd_proto::{BlockSizes, RequestRules as Rules, TransmissionFlags};

use crate::limits::Limits;

/// The preferred block size, in bytes, where the storage's own is smaller: a page.
const PREFERRED_BLOCK_SIZE: u32 = 4096;

/// A backend that clients find under a name.
pub struct Export {
    name: String,
    description: String,
    backend: Arc<dyn Backend>,
    geometry: Geometry,
    workers: Arc<Workers>,
    durability: ProcessDurability,
}

impl Export {
    /// An export; the default one has an empty name. Clients can list the description.
    pub fn new(name: String, description: String, backend: Arc<dyn Backend>) -> Self {
        let geometry = backend.geometry();
        let workers = Workers::new(Arc::clone(&backend));
        let durability = ProcessDurability::default();
        Self { name, description, backend, geometry, workers, durability }
    }

    /// The same export, read-only for all clients.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.geometry.capabilities = Capabilities {
            read_only: true,
            trim: false,
            write_zeroes: false,
            fast_zero: false,
            ..self.geometry.capabilities
        };
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// One for all connections, because a flush on one connection covers the writes of all of them
    /// (NBD_FLAG_CAN_MULTI_CONN).
    pub(crate) fn durability(&self) -> &dyn Durability {
        &self.durability
    }

    /// The rules by which requests are checked, given what was negotiated.
    pub(crate) fn rules(&self, offer: &Offer, block_status: bool) -> Rules {
        Rules {
            size: offer.size,
            flags: offer.flags,
            min_block_size: self.minimum(),
            max_payload: offer.block_sizes.maximum,
            block_status,
        }
    }

    fn offer(&self, limits: &Limits) -> Offer {
        let minimum = self.minimum();
        let can = &self.geometry.capabilities;
        // Offer only what the storage can do. A flush that was offered and fails would tell the
        // client that data is lost.
        let mut flags = self.geometry.transmission_flags();
        if can.volatile {
            flags |= TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA;
        }
        Offer {
            size: self.geometry.size,
            flags,
            block_sizes: BlockSizes {
                minimum,
                preferred: PREFERRED_BLOCK_SIZE.max(self.geometry.block_size),
                maximum: limits.max_payload,
            },
            description: Some(self.description.clone()),
            name: self.name.clone(),
            allocation: can.extents,
        }
    }

    fn minimum(&self) -> u32 {
        if self.geometry.capabilities.unaligned { 1 } else { self.geometry.block_size }
    }
}

/// `NAME=DESCRIPTION`, as on the command line.
impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.name.is_empty() {
            write!(f, "{}=", self.name)?;
        }
        f.write_str(&self.description)
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .field("description", &self.description)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

/// All exports of a server.
#[derive(Debug)]
pub(crate) struct Exports {
    pub(crate) list: Vec<Arc<Export>>,
    pub(crate) limits: Limits,
}

impl Exports {
    /// The export of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Export>> {
        self.list.iter().find(|export| export.name == name)
    }
}

impl ExportList for Exports {
    fn find(&self, name: &str) -> Result<Offer, Refusal> {
        let export = self.get(name).ok_or(Refusal::Unknown)?;
        Ok(export.offer(&self.limits))
    }

    fn list(&self) -> Result<Vec<(String, Option<String>)>, Refusal> {
        let entry = |export: &Arc<Export>| (export.name.clone(), Some(export.description.clone()));
        Ok(self.list.iter().map(entry).collect())
    }
}
