//! What the servers of the targets offer.

use nbd_proto::TransmissionFlags;
use nbd_proto::handshake::{ExportList, Offer, Refusal};

pub(crate) const SIZE: u64 = 1 << 30;

/// The default export, which knows of extents, one that does not, and two that are refused.
pub(crate) struct Exports;

impl ExportList for Exports {
    fn find(&self, name: &str) -> Result<Offer, Refusal> {
        let offer = Offer::new(name, SIZE, TransmissionFlags::HAS_FLAGS);
        match name {
            "" => Ok(Offer { allocation: true, description: Some("words".into()), ..offer }),
            "p" => Ok(offer),
            "s" => Err(Refusal::Policy),
            "c" => Err(Refusal::Shutdown),
            _ => Err(Refusal::Unknown),
        }
    }

    fn list(&self) -> Result<Vec<(String, Option<String>)>, Refusal> {
        Ok(vec![(String::new(), Some("words".into())), ("p".into(), None)])
    }
}
