//! What a specification comes to on this machine, before anything is touched: a tree like it.

use std::fmt;
use std::io;
use std::sync::Arc;

use nbd_backend::{Backend, ExportInfo, Geometry};
use nbd_control::settings::Setting;

pub(crate) use crate::export::error::ExportError;
pub(crate) use crate::export::fd_store::FdScope;

/// What becomes of a plan when its storage is opened.
pub(crate) type Opened = Result<Arc<dyn Backend>, ExportError>;

/// A backend to be.
pub(crate) trait ExportPlan: fmt::Debug {
    fn geometry(&self) -> Geometry;

    /// Goes on with a smaller size if the storage has grown since it was attached.
    fn clamp_size(&mut self, _size: u64) {}

    /// Looks how large the storage is by now, for a device of this size that is to grow. What cannot
    /// grow keeps to it.
    fn grow(&mut self, size: u64) -> Result<(), ExportError> {
        self.clamp_size(size);
        Ok(())
    }

    /// Reads what is there now. Only what is needed to know the shape is read before the storage
    /// is ours, like partition tables.
    fn read_before_open(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        let text = "its content is not known before it is served";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    /// What can be changed while it is in use, behind that of the layers above.
    fn settings(&self, _all: &mut Vec<Setting>) {}

    /// The names of all that a successor must be left.
    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>);

    /// Checks that it fits what the predecessor left, which still uses it.
    fn examine(&mut self, _fds: &mut FdScope<'_>) -> Result<(), ExportError> {
        Ok(())
    }

    /// Takes over what the predecessor left, or makes sure that there is something to leave.
    fn open_storage(self: Box<Self>, fds: &mut FdScope<'_>) -> Opened;

    /// What would forget writes when this process dies, in place of keeping them for a successor.
    fn loses_writes(&self) -> Option<String> {
        None
    }

    /// Tells the operator on stderr what is worth knowing.
    fn tell(&self) {}
}

/// What is known of the shape of something before it is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ShapeHint<'a> {
    Nothing,
    /// It is attached.
    Attached(&'a ExportInfo),
    /// It will not be: what lies above it has another shape.
    Reshaped,
}
