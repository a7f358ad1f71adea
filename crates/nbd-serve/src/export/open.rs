//! From a specification to its plan.

use std::sync::Arc;

use crate::export::cow::CowPlan;
use crate::export::error::ExportError;
use crate::export::nbdkit::NbdkitPlan;
use crate::export::plan::{ExportPlan, ShapeHint};
use crate::export::rbd::RbdPlan;
use crate::export::remote::RemotePlan;
use crate::export::synthetic::Synthetic;
use crate::export::{record, subrange, wrapped};
use crate::spec::{CowSpec, Layer, LayerSpec, Spec};
use crate::storage::probe;
use crate::storage::synthetic::{self, Null, Pattern};

/// Looks at what is named. Nothing is changed by that.
pub(crate) fn open(spec: Spec, hint: ShapeHint<'_>) -> Result<Box<dyn ExportPlan>, ExportError> {
    Ok(match spec {
        Spec::Remote(target) => Box::new(RemotePlan::open(target, hint)?),
        Spec::Nbdkit(plugin) => Box::new(NbdkitPlan::open(plugin, hint)?),
        Spec::Rbd(image) => Box::new(RbdPlan::open(image, hint)?),
        Spec::Memory(memory) => Box::new(memory),
        Spec::File(file) => {
            let path = file.path.clone();
            let file = match hint {
                ShapeHint::Attached(attached) => file.grown_to(attached.size),
                ShapeHint::Nothing | ShapeHint::Reshaped => file,
            };
            let found = probe::probe(file).map_err(|error| match hint {
                ShapeHint::Attached(_) => error.of_attached(),
                ShapeHint::Nothing | ShapeHint::Reshaped => error,
            });
            Box::new(found.map_err(|source| ExportError::Probe { path, source })?)
        }
        Spec::Null(null) => {
            Box::new(Synthetic(synthetic::null(null), |shape| Arc::new(Null(shape))))
        }
        Spec::Pattern(pattern) => {
            Box::new(Synthetic(synthetic::pattern(pattern), |shape| Arc::new(Pattern(shape))))
        }
        Spec::Cow(cow) => {
            let CowSpec { base, diff, read_only } = *cow;
            Box::new(CowPlan::open(open(base, ShapeHint::Reshaped)?, diff, read_only)?)
        }
        Spec::Layer(layered) => {
            let LayerSpec { layer, inner } = *layered;
            let hint = match layer {
                Layer::Partition(_) | Layer::Offset { .. } => ShapeHint::Reshaped,
                Layer::ReadOnly | Layer::Record(_) | Layer::Configurable(..) => hint,
            };
            let inner = open(inner, hint)?;
            match layer {
                Layer::Partition(number) => subrange::partition(inner, number)?,
                Layer::Offset { start, length } => subrange::offset(inner, start, length)?,
                Layer::ReadOnly => wrapped::read_only(inner),
                Layer::Record(log) => record::open(inner, log),
                Layer::Configurable(schema, values) => wrapped::configurable(inner, schema, values),
            }
        }
    })
}
