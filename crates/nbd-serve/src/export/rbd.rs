//! An image of a Ceph cluster as an export: looked at for its shape, and opened when it is ours.
//!
//! A successor must not open it before its predecessor is dead, and then shuts the predecessor out of the
//! cluster before it does anything else. Whom it has to shut out is in a page of memory that the holder
//! keeps.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbd_backend::{Backend, Geometry, chain};
use nbd_client::check_change;
use nbd_rbd::{ImageSpec, OnLoss, RbdBackend, RbdError, Record, RecordStore};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::export::plan::{ExportError, ExportPlan, FdScope, Opened, ShapeHint};

/// The name under which the holder keeps the record.
const STORED_FD_NAME: &str = "rbd-client";
/// A record is one page, so that it is written entirely or not at all when this process is killed.
const RECORD_BYTES: usize = 4096;

/// An image that will be opened.
#[derive(Debug)]
pub(crate) struct RbdPlan {
    spec: ImageSpec,
    geometry: Geometry,
    /// For reading before it is ours.
    reader: OnceCell<RbdBackend>,
}

impl RbdPlan {
    /// Looks at it, unless it is known what was attached.
    pub(crate) fn open(spec: ImageSpec, hint: ShapeHint<'_>) -> Result<Self, ExportError> {
        let geometry = match hint {
            ShapeHint::Attached(attached) => {
                nbd_rbd::load_library().map_err(|source| failed(&spec, source))?;
                Geometry::of(attached)
            }
            ShapeHint::Nothing | ShapeHint::Reshaped => {
                let shape = nbd_rbd::look(&spec).map_err(|source| failed(&spec, source))?;
                if shape.tail > 0 {
                    let (tail, block) = (shape.tail, shape.geometry.block_size);
                    tracing::warn!(
                        "{spec}: its last {tail} bytes are not part of the device, whose size is a multiple \
                         of {block}"
                    );
                }
                shape.geometry
            }
        };
        Ok(Self { spec, geometry, reader: OnceCell::new() })
    }

    fn open_reader(&self) -> Result<RbdBackend, ExportError> {
        let spec =
            ImageSpec { take_over: false, unlocked: false, read_only: true, ..self.spec.clone() };
        open(&spec, Arc::new(NoRecord), OnLoss::FailRequests, |now| Ok(now.size))
    }
}

fn failed(spec: &ImageSpec, source: RbdError) -> ExportError {
    ExportError::Rbd { image: spec.to_string(), source }
}

impl ExportPlan for RbdPlan {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn clamp_size(&mut self, size: u64) {
        self.geometry.size = self.geometry.size.min(size);
    }

    fn grow(&mut self, _size: u64) -> Result<(), ExportError> {
        let shape = nbd_rbd::look(&self.spec).map_err(|source| failed(&self.spec, source))?;
        self.geometry.size = shape.geometry.size;
        Ok(())
    }

    fn read_before_open(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let reader = match self.reader.get() {
            Some(reader) => reader,
            None => {
                let reader = self.open_reader().map_err(|error| io::Error::other(chain(&error)))?;
                self.reader.get_or_init(|| reader)
            }
        };
        reader.read_at(buffer, offset)
    }

    fn stored_fd_names(&self, place: &str, names: &mut Vec<String>) {
        if !self.spec.is_read_only() {
            names.push(format!("{place}{STORED_FD_NAME}"));
        }
    }

    fn open_storage(self: Box<Self>, fds: &mut FdScope<'_>) -> Opened {
        let Self { spec, geometry, reader } = *self;
        if let Some(reader) = reader.into_inner() {
            reader.close();
        }
        let on_loss = if fds.has_successor() {
            OnLoss::EndProcess(nbd_log::finish)
        } else {
            OnLoss::FailRequests
        };
        let record: Arc<dyn RecordStore> = if spec.is_read_only() {
            Arc::new(NoRecord)
        } else {
            Arc::new(keep_record(&spec, fds)?)
        };
        let agree = |now: &Geometry| {
            let changed = |source| ExportError::RbdChanged { image: spec.to_string(), source };
            check_change(&geometry, now).map_err(changed)?;
            Ok(geometry.size)
        };
        Ok(Arc::new(open(&spec, record, on_loss, agree)?))
    }
}

/// The predecessor's record, or one that is deposited.
fn keep_record(spec: &ImageSpec, fds: &mut FdScope<'_>) -> Result<RecordPage, ExportError> {
    let image = spec.image_name();
    if let Some(page) = fds.inherit(STORED_FD_NAME)? {
        return Ok(RecordPage { page, image });
    }
    let page = RecordPage::new(image)
        .map_err(|source| ExportError::RbdRecord { image: spec.to_string(), source })?;
    fds.keep(STORED_FD_NAME, &page.page)?;
    Ok(page)
}

fn open(
    spec: &ImageSpec,
    record: Arc<dyn RecordStore>,
    on_loss: OnLoss,
    agree: impl FnOnce(&Geometry) -> Result<u64, ExportError>,
) -> Result<RbdBackend, ExportError> {
    enum Failure {
        Rbd(RbdError),
        Export(ExportError),
    }
    impl From<RbdError> for Failure {
        fn from(error: RbdError) -> Self {
            Self::Rbd(error)
        }
    }
    let agree = |now: &Geometry| agree(now).map_err(Failure::Export);
    RbdBackend::open(spec, record, on_loss, agree).map_err(|failure| match failure {
        Failure::Rbd(source) => failed(spec, source),
        Failure::Export(error) => error,
    })
}

/// For an image that is only read: no client needs to be shut out after it.
struct NoRecord;

impl RecordStore for NoRecord {
    fn load(&self) -> io::Result<Record> {
        Ok(Record::Empty)
    }

    fn save(&self, _record: &Record) -> io::Result<()> {
        Ok(())
    }
}

/// A record in a page of memory, behind a line with the image that it is of.
struct RecordPage {
    page: File,
    image: String,
}

impl RecordPage {
    fn new(image: String) -> io::Result<Self> {
        let page = File::from(memfd_create(c"nbd-rbd-client", MFdFlags::MFD_CLOEXEC)?);
        page.set_len(RECORD_BYTES as u64)?;
        Ok(Self { page, image })
    }
}

impl RecordStore for RecordPage {
    fn load(&self) -> io::Result<Record> {
        let strange = || io::Error::new(io::ErrorKind::InvalidData, "not left by this program");
        let mut page = [0; RECORD_BYTES];
        self.page.read_exact_at(&mut page, 0)?;
        let text = page.split(|byte| *byte == 0).next().unwrap_or_default();
        if text.is_empty() {
            return Ok(Record::Empty);
        }
        let text = str::from_utf8(text).ok();
        let (image, record) = text.and_then(|text| text.split_once('\n')).ok_or_else(strange)?;
        if image != self.image {
            // The device's users would find other data below them.
            let text = format!("the device has the image {image}: detach it to serve another");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Record::from_text(record).ok_or_else(strange)
    }

    fn save(&self, record: &Record) -> io::Result<()> {
        let text = format!("{}\n{}", self.image, record.to_text());
        let mut page = [0; RECORD_BYTES];
        let place = page.get_mut(..text.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        place.copy_from_slice(text.as_bytes());
        self.page.write_all_at(&page, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_was_saved_last() {
        let page = RecordPage::new("rbd/disk".into()).unwrap();
        assert_eq!(page.load().unwrap(), Record::Empty);
        for record in [Record::Owner("10.0.0.1:0/123456".into()), Record::Lost, Record::Empty] {
            page.save(&record).unwrap();
            assert_eq!(page.load().unwrap(), record);
        }
        assert!(page.save(&Record::Owner("x".repeat(RECORD_BYTES))).is_err());
    }

    #[test]
    fn a_record_is_of_one_image() {
        let page = RecordPage::new("rbd/disk".into()).unwrap();
        page.save(&Record::Empty).unwrap();
        let page = RecordPage { image: "rbd/other".into(), ..page };
        let told = page.load().unwrap_err().to_string();
        assert!(told.contains("rbd/disk"), "{told}");
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        let page = RecordPage::new("rbd/disk".into()).unwrap();
        for text in ["what", "rbd/disk\nwhat"] {
            page.page.write_all_at(text.as_bytes(), 0).unwrap();
            assert_eq!(page.load().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        page.page.set_len(10).unwrap();
        assert!(page.load().is_err());
    }
}
