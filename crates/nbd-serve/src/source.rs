//! What a specification comes to on this machine, before anything is touched: a tree like it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbd_backend::{Backend, ExportInfo, Geometry};
use nbd_control::settings::Setting;

use crate::adopt;
use crate::aligned;
use crate::cow::CowSource;
use crate::estate::Estate;
use crate::export::ExportError;
use crate::file::{FileExport, Kind};
use crate::mem;
use crate::probe::{self, Probe};
use crate::record;
use crate::remote::RemoteExport;
use crate::size::Size;
use crate::spec::{Layer, LayerSpec, MemorySpec, Spec};
use crate::synthetic::{self, Null, Pattern};
use crate::window;

/// A backend to be.
pub(crate) trait Source: fmt::Debug {
    fn geometry(&self) -> Geometry;

    /// Goes on with a smaller size if the storage has grown since it was attached.
    fn agree(&mut self, _size: u64) {}

    /// Looks how large the storage is by now, for a device of this size that is to grow. What cannot
    /// grow keeps to it.
    fn grow(&mut self, size: u64) -> Result<(), ExportError> {
        self.agree(size);
        Ok(())
    }

    /// Reads what is there now. Only what is needed to know the shape is read before the storage
    /// is ours, like partition tables.
    fn peek(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        let text = "its content is not known before it is served";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    /// What can be changed while it is in use, behind that of the layers above.
    fn settings(&self, _all: &mut Vec<Setting>) {}

    /// The names of all that a successor must be left.
    fn keepsakes(&self, place: &str, names: &mut Vec<String>);

    /// Checks that it fits what the predecessor left, which still uses it.
    fn examine(&mut self, _estate: &mut Estate<'_>) -> Result<(), ExportError> {
        Ok(())
    }

    /// Takes over what the predecessor left, or makes sure that there is something to leave.
    fn settle(self: Box<Self>, estate: &mut Estate<'_>) -> Result<Arc<dyn Backend>, ExportError>;

    /// Tells the operator on stderr what is worth knowing.
    fn tell(&self) {}
}

/// What is known of the shape of something before it is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Known<'a> {
    Nothing,
    /// It is attached.
    Attached(&'a ExportInfo),
    /// It will not be: what lies above it has another shape.
    Reshaped,
}

/// Looks at what is named. Nothing is changed by that.
pub(crate) fn open(spec: Spec, known: Known<'_>) -> Result<Box<dyn Source>, ExportError> {
    Ok(match spec {
        Spec::Remote(target) => Box::new(RemoteExport::open(target, known)?),
        Spec::Memory(memory) => Box::new(memory),
        Spec::File(file) => {
            let path = file.path.clone();
            let file = match known {
                Known::Attached(attached) => file.grown_to(attached.size),
                Known::Nothing | Known::Reshaped => file,
            };
            Box::new(probe::probe(file).map_err(|source| ExportError::Probe { path, source })?)
        }
        Spec::Null(null) => Box::new(Made(synthetic::null(null), |shape| Arc::new(Null(shape)))),
        Spec::Pattern(pattern) => {
            Box::new(Made(synthetic::pattern(pattern), |shape| Arc::new(Pattern(shape))))
        }
        Spec::Cow(cow) => Box::new(CowSource::open(*cow)?),
        Spec::Layer(layered) => {
            let LayerSpec { layer, inner } = *layered;
            let known = match layer {
                Layer::Partition(_) | Layer::Offset { .. } => Known::Reshaped,
                Layer::ReadOnly | Layer::Record(_) | Layer::Tuned(..) => known,
            };
            let inner = open(inner, known)?;
            match layer {
                Layer::Partition(number) => window::partition(inner, number)?,
                Layer::Offset { start, length } => window::offset(inner, start, length)?,
                Layer::ReadOnly => window::read_only(inner),
                Layer::Record(log) => record::open(inner, log),
                Layer::Tuned(schema, values) => window::tuned(inner, schema, values),
            }
        }
    })
}

/// Something that is not stored anywhere.
struct Made(Geometry, fn(Geometry) -> Arc<dyn Backend>);

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Made").field(&self.0).finish()
    }
}

impl Source for Made {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn keepsakes(&self, _place: &str, _names: &mut Vec<String>) {}

    fn settle(self: Box<Self>, _vault: &mut Estate<'_>) -> Result<Arc<dyn Backend>, ExportError> {
        Ok((self.1)(self.0))
    }
}

impl Source for MemorySpec {
    fn geometry(&self) -> Geometry {
        mem::geometry(*self)
    }

    fn keepsakes(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{}", mem::KEEPSAKE));
    }

    fn examine(&mut self, estate: &mut Estate<'_>) -> Result<(), ExportError> {
        inherit_memory(*self, estate).map(drop)
    }

    fn settle(self: Box<Self>, estate: &mut Estate<'_>) -> Result<Arc<dyn Backend>, ExportError> {
        let object = Spec::Memory(*self).to_string();
        let failed = |source| ExportError::Memory { object: object.clone(), source };
        let file = match inherit_memory(*self, estate)? {
            Some(file) => file,
            None => {
                let file = mem::make(self.size).map_err(failed)?;
                estate.keep(mem::KEEPSAKE, &file)?;
                file
            }
        };
        let geometry = mem::geometry(*self);
        Ok(Arc::new(FileExport::new(file, object.into(), Kind::Memory, false, geometry)))
    }
}

fn inherit_memory(spec: MemorySpec, estate: &Estate<'_>) -> Result<Option<File>, ExportError> {
    let Some(file) = estate.inherit(mem::KEEPSAKE)? else {
        return Ok(None);
    };
    let object = || Spec::Memory(spec).to_string();
    mem::check(&file, spec.size)
        .map_err(|source| ExportError::Memory { object: object(), source })?;
    Ok(Some(file))
}

impl Source for Probe {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn agree(&mut self, size: u64) {
        if self.geometry.size > size {
            self.notes.push(format!(
                "has grown to {}; the device keeps its {}",
                Size(self.geometry.size),
                Size(size)
            ));
            self.geometry.size = size;
        }
    }

    /// It was looked at a moment ago.
    fn grow(&mut self, _size: u64) -> Result<(), ExportError> {
        Ok(())
    }

    fn peek(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(file) = &self.file else {
            // It is yet to be made.
            buffer.fill(0);
            return Ok(());
        };
        if !self.spec.direct {
            return file.read_exact_at(buffer, offset);
        }
        // What is asked for may begin and end anywhere.
        let block = u64::from(self.geometry.block_size);
        let start = offset - offset % block;
        let length = (offset + buffer.len() as u64).next_multiple_of(block) - start;
        let skip = (offset - start) as usize;
        if length > aligned::LONGEST as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        aligned::with_buffer(length as usize, |data| {
            file.read_exact_at(data, start)?;
            buffer.copy_from_slice(&data[skip..skip + buffer.len()]);
            Ok(())
        })
    }

    fn keepsakes(&self, place: &str, names: &mut Vec<String>) {
        names.push(format!("{place}{}", adopt::KEEPSAKE));
    }

    fn examine(&mut self, estate: &mut Estate<'_>) -> Result<(), ExportError> {
        inherit_file(self, estate).map(drop)
    }

    fn settle(
        mut self: Box<Self>,
        estate: &mut Estate<'_>,
    ) -> Result<Arc<dyn Backend>, ExportError> {
        let file = settle_file(&mut self, estate);
        self.tell();
        let Self { spec, kind, geometry, .. } = *self;
        Ok(Arc::new(FileExport::new(file?, spec.path, kind, spec.direct, geometry)))
    }

    fn tell(&self) {
        for note in &self.notes {
            tracing::info!("{}: {note}", self.spec.path.display());
        }
    }
}

/// The predecessor's file, if it left one; it must be the one that is named.
fn inherit_file(probe: &mut Probe, estate: &Estate<'_>) -> Result<Option<File>, ExportError> {
    let Some(file) = estate.inherit(adopt::KEEPSAKE)? else {
        return Ok(None);
    };
    let path = probe.spec.path.clone();
    adopt::check(probe, &file).map_err(|source| ExportError::Adopt { path, source })?;
    Ok(Some(file))
}

fn settle_file(probe: &mut Probe, estate: &mut Estate<'_>) -> Result<File, ExportError> {
    if let Some(file) = inherit_file(probe, estate)? {
        return Ok(file);
    }
    let path = probe.spec.path.clone();
    let failed = |source| ExportError::Adopt { path, source };
    let file = adopt::first(probe).map_err(failed)?;
    estate.keep(adopt::KEEPSAKE, &file)?;
    Ok(file)
}
