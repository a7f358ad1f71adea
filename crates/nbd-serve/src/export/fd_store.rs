//! What is left for a successor: descriptors, each under a name that tells its place in the tree.
//!
//! `file` is the file of `file:`; `base.file` is the one of the base of `cow:`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nbd_backend::{JoinError, Session, Stored};
use nbd_control::settings::{self, Setting};

use crate::export::error::ExportError;
use crate::layers::layer_option::{OptionValues, Schema};

/// What keeps descriptors for a successor.
pub(crate) trait FdStore {
    /// The device that they belong to, for messages.
    fn device(&self) -> &str;
    /// What the predecessor left.
    fn names(&self) -> Vec<String>;
    fn stored_fd(&self, name: &str) -> Option<BorrowedFd<'_>>;
    fn keep(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), JoinError>;
    /// Whether there is a device, and with it a successor when this process ends.
    fn has_successor(&self) -> bool {
        true
    }
}

impl FdStore for Session {
    fn device(&self) -> &str {
        Session::device(self)
    }

    fn names(&self) -> Vec<String> {
        self.stored_fd_names().map(Into::into).collect()
    }

    fn stored_fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        Session::stored_fd(self, name)
    }

    fn keep(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), JoinError> {
        Session::keep(self, name, descriptor)
    }
}

/// A holder that shows what it keeps, and takes nothing.
impl FdStore for Stored {
    fn device(&self) -> &str {
        Stored::device(self)
    }

    fn names(&self) -> Vec<String> {
        self.stored_fd_names().map(Into::into).collect()
    }

    fn stored_fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        Stored::stored_fd(self, name)
    }

    fn keep(&mut self, _name: &str, _descriptor: BorrowedFd<'_>) -> Result<(), JoinError> {
        Err(JoinError::Refused(
            "descriptors can be stored only before the device is attached".into(),
        ))
    }
}

/// Without a holder: there is no successor either.
pub(crate) struct NoFdStore;

impl FdStore for NoFdStore {
    fn device(&self) -> &str {
        "nobody"
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn stored_fd(&self, _name: &str) -> Option<BorrowedFd<'_>> {
        None
    }

    fn keep(&mut self, _name: &str, _descriptor: BorrowedFd<'_>) -> Result<(), JoinError> {
        Ok(())
    }

    fn has_successor(&self) -> bool {
        false
    }
}

/// A store, seen from a place in the tree.
pub(crate) struct FdScope<'a> {
    store: &'a mut dyn FdStore,
    place: String,
    /// The settings of all layers, and how many of them have been taken.
    table: Option<Arc<File>>,
    taken: usize,
}

impl<'a> FdScope<'a> {
    /// Seen from the root. `names` are those of all that will be kept, and `settings` those of all
    /// layers.
    pub(crate) fn new(
        store: &'a mut dyn FdStore,
        names: &[String],
        settings: &[Setting],
    ) -> Result<Self, ExportError> {
        check_names(store, names)?;
        let mut fds = Self { store, place: String::new(), table: None, taken: 0 };
        fds.table = fds.table(settings)?.map(Arc::new);
        Ok(fds)
    }

    /// What a predecessor that lives has left, to be looked at. Nothing is changed.
    pub(crate) fn examined(stored: &'a mut Stored, names: &[String]) -> Result<Self, ExportError> {
        check_names(stored, names)?;
        let missing = names.iter().find(|name| stored.stored_fd(name).is_none());
        if let Some(name) = missing.filter(|_| stored.is_attached()) {
            let reason = "the present backend has left none, so only one of its kind can follow it";
            return Err(ExportError::Keep {
                device: stored.device().into(),
                name: name.clone(),
                source: JoinError::Refused(reason.into()),
            });
        }
        Ok(Self { store: stored, place: String::new(), table: None, taken: 0 })
    }

    /// The table of settings: the predecessor's with the values that it has by now, except where
    /// this backend was started with others.
    fn table(&mut self, wanted: &[Setting]) -> Result<Option<File>, ExportError> {
        let kept = self.inherit(settings::STORED_FD_NAME)?.filter(settings::is_memory);
        if let Some(table) = kept {
            let found = settings::load(&table).unwrap_or_default();
            let merged: Vec<_> = wanted.iter().map(|wanted| merge(wanted, &found)).collect();
            if merged != found {
                settings::store(&table, &merged).map_err(ExportError::Settings)?;
            }
            return Ok(Some(table));
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        if wanted.len() > settings::MOST {
            return Err(ExportError::TooManyLayers);
        }
        let table = settings::make(wanted).map_err(ExportError::Settings)?;
        match self.store.keep(settings::STORED_FD_NAME, table.as_fd()) {
            Ok(()) => {}
            // The device is in use already, without such layers so far.
            Err(JoinError::Refused(_)) => tracing::warn!(
                "its settings cannot be changed by `nbd-ctl set`, because the device \
                 was attached without any"
            ),
            Err(source) => return Err(self.keep_failed(settings::STORED_FD_NAME, source)),
        }
        Ok(Some(table))
    }

    /// The options of the next layer, from the top down.
    pub(crate) fn options(&mut self, schema: &Schema, values: Vec<u64>) -> Option<OptionValues> {
        let first = self.taken;
        self.taken += schema.options.len();
        Some(OptionValues::new(Arc::clone(self.table.as_ref()?), first, values))
    }

    /// The same store, seen from further down.
    pub(crate) fn within<R>(&mut self, name: &str, what: impl FnOnce(&mut Self) -> R) -> R {
        let length = self.place.len();
        self.place.push_str(name);
        self.place.push('.');
        let result = what(self);
        self.place.truncate(length);
        result
    }

    /// Whether there is a device, and with it a successor when this process ends.
    pub(crate) fn has_successor(&self) -> bool {
        self.store.has_successor()
    }

    /// The predecessor's descriptor, if there was a predecessor.
    pub(crate) fn inherit(&self, name: &str) -> Result<Option<File>, ExportError> {
        let name = format!("{}{name}", self.place);
        let duplicate = self.store.stored_fd(&name).map(|fd| fd.try_clone_to_owned());
        let duplicate = duplicate.transpose().map_err(|source| {
            let device = self.store.device().into();
            ExportError::Duplicate { device, name, source }
        })?;
        Ok(duplicate.map(|fd: OwnedFd| fd.into()))
    }

    /// Deposits a descriptor for successors.
    pub(crate) fn keep(&mut self, name: &str, descriptor: &impl AsFd) -> Result<(), ExportError> {
        let name = format!("{}{name}", self.place);
        let kept = self.store.keep(&name, descriptor.as_fd());
        kept.map_err(|source| self.keep_failed(&name, source))
    }

    fn keep_failed(&self, name: &str, source: JoinError) -> ExportError {
        let device = self.store.device().into();
        ExportError::Keep { device, name: name.into(), source }
    }
}

/// A predecessor of another kind has left something else than what will be kept.
fn check_names(store: &dyn FdStore, names: &[String]) -> Result<(), ExportError> {
    let left = store.names();
    let strange =
        left.iter().find(|left| *left != settings::STORED_FD_NAME && !names.contains(left));
    match strange {
        None => Ok(()),
        Some(was) => Err(ExportError::OtherKind {
            device: store.device().into(),
            was: was.clone(),
            now: names.first().map_or("nothing that is kept", |name| name.as_str()).into(),
        }),
    }
}

fn merge(wanted: &Setting, found: &[Setting]) -> Setting {
    let same = |found: &&Setting| {
        (&found.name, found.kind, found.initial) == (&wanted.name, wanted.kind, wanted.initial)
    };
    found.iter().find(same).unwrap_or(wanted).clone()
}
