//! Backends under names.

use std::fmt;
use std::sync::Arc;

use nbd_backend::{Backend, Capabilities, Durability, Geometry, ProcessDurability, Workers};
use nbd_proto::handshake::{ExportList, Offer, Refusal};
use nbd_proto::{BlockSizes, RequestRules as Rules, TransmissionFlags};

use crate::limits::Limits;

/// What clients like best where the storage has no wish of its own, in bytes: a page.
const PREFERRED_BLOCK: u32 = 4096;

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
    /// An export; the default one has an empty name. The description is for people.
    pub fn new(name: String, description: String, backend: Arc<dyn Backend>) -> Self {
        let geometry = backend.geometry();
        let workers = Workers::new(Arc::clone(&backend));
        let durability = ProcessDurability::default();
        Self { name, description, backend, geometry, workers, durability }
    }

    /// The same export, to which nobody may write.
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

    /// One for all connections, as a flush on one of them is about the writes of all.
    pub(crate) fn durability(&self) -> &dyn Durability {
        &self.durability
    }

    /// What requests are checked against, given what was agreed on.
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
        // What the storage can do, and no more. A client that is not offered a flush knows that there
        // is none to be had; if it were, it would be told of a failure, and so of lost data.
        let mut flags = self.geometry.transmission_flags();
        if can.volatile {
            flags |= TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA;
        }
        Offer {
            size: self.geometry.size,
            flags,
            block_sizes: BlockSizes {
                minimum,
                preferred: PREFERRED_BLOCK.max(self.geometry.block_size),
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

/// Name and description, as people write them.
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
