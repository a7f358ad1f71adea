//! A backend to be: its shape is known first; its storage when the holder has granted the lanes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nbd_backend::{Backend, ExportInfo, Geometry, JoinError, Stored};
use thiserror::Error;

use crate::adopt::AdoptError;
use crate::cow::CowError;
use crate::estate::{Alone, Estate, Keeper};
use crate::mem::MemoryError;
use crate::probe::ProbeError;
use crate::record::RecordError;
use crate::remote::RemoteError;
use crate::source::{self, Known, Source};
use crate::spec::Spec;
use crate::window::WindowError;

/// What a specification comes to on this machine.
#[derive(Debug)]
pub(crate) struct Export {
    description: String,
    source: Box<dyn Source>,
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
    #[error(transparent)]
    Window(#[from] WindowError),
    #[error("{}", .path.display())]
    Cow { path: PathBuf, source: CowError },
    #[error("{}", .path.display())]
    Record { path: PathBuf, source: RecordError },
    #[error("{device}: serves {was} and not {now} since it was attached: detach it first")]
    OtherKind { device: String, was: String, now: String },
    #[error("{device}: cannot take over the {name} that the predecessor left")]
    Duplicate { device: String, name: String, source: io::Error },
    #[error("{device}: cannot deposit the {name} with the holder")]
    Keep { device: String, name: String, source: JoinError },
    #[error("cannot make or change the table of settings")]
    Settings(#[source] io::Error),
    #[error("there are too many layers: leave some of them out")]
    TooManyLayers,
}

impl Export {
    /// Looks at what is named. Nothing is changed by that.
    ///
    /// What is `attached` is the shape for what need not or must not be looked at again.
    pub(crate) fn open(spec: Spec, attached: Option<&ExportInfo>) -> Result<Self, ExportError> {
        let spec = spec.absolute();
        let description = spec.to_string();
        let known = attached.map_or(Known::Nothing, Known::Attached);
        Ok(Self { description, source: source::open(spec, known)? })
    }

    /// What is served, for people.
    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.source.geometry()
    }

    /// Keeps to the shape that was attached where the storage can still serve it: a file that has
    /// grown since then is no reason to leave the device without a backend.
    pub(crate) fn agree(&mut self, attached: &ExportInfo) {
        self.source.agree(attached.size);
    }

    /// Looks how large it is by now, for a device that is to grow.
    pub(crate) fn grow(&mut self, attached: &ExportInfo) -> Result<(), ExportError> {
        self.source.grow(attached.size)
    }

    /// Checks that it fits what a predecessor that lives has left. Nothing is changed by that.
    ///
    /// # Errors
    /// It could not take over from that predecessor.
    pub(crate) fn examine(&mut self, mut stored: Stored) -> Result<(), ExportError> {
        let mut names = Vec::new();
        self.source.keepsakes("", &mut names);
        let mut estate = Estate::examined(&mut stored, &names)?;
        self.source.examine(&mut estate)
    }

    /// Takes over what the predecessor left, or makes sure that there is something to leave.
    pub(crate) fn settle(self, keeper: &mut dyn Keeper) -> Result<Arc<dyn Backend>, ExportError> {
        let (mut names, mut settings) = (Vec::new(), Vec::new());
        self.source.keepsakes("", &mut names);
        self.source.settings(&mut settings);
        let mut estate = Estate::new(keeper, &names, &settings)?;
        self.source.settle(&mut estate)
    }

    /// Serves it without a holder: there is neither predecessor nor successor.
    pub(crate) fn alone(self) -> Result<Arc<dyn Backend>, ExportError> {
        self.settle(&mut Alone)
    }

    /// Tells the operator on stderr what is worth knowing.
    pub(crate) fn tell(&self) {
        self.source.tell();
    }
}
