//! Options of a layer that can be changed while it is in use.

use std::fs::File;
use std::sync::Arc;

use nbd_control::settings::{self, Kind, Setting};

/// The options of a layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Schema {
    /// The layer's name.
    pub(crate) name: &'static str,
    pub(crate) options: &'static [LayerOption],
    /// The options that a value without a name sets.
    pub(crate) bare: &'static [usize],
}

/// An option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LayerOption {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) default: u64,
}

impl LayerOption {
    pub(crate) const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, default: 0 }
    }
}

impl Schema {
    /// The settings of a layer. A second one of its kind further down is called by its number.
    pub(crate) fn settings(&self, values: &[u64], others: &[Setting]) -> Vec<Setting> {
        let is_first = |layer: &str| {
            let first = format!("{layer}.{}", self.options[0].name);
            !others.iter().any(|setting| setting.name == first)
        };
        let mut layers = std::iter::once(self.name.to_owned())
            .chain((2..).map(|number| format!("{}{number}", self.name)));
        let layer = layers.find(|layer| is_first(layer)).unwrap_or_default();
        let pairs = self.options.iter().zip(values);
        pairs
            .map(|(option, &value)| Setting {
                name: format!("{layer}.{}", option.name),
                kind: option.kind,
                initial: value,
                value,
            })
            .collect()
    }
}

/// The present values of a layer's options.
#[derive(Clone, Debug)]
pub(crate) struct OptionValues {
    table: Arc<File>,
    first: usize,
    initial: Vec<u64>,
}

impl OptionValues {
    /// Those of a layer whose settings begin at an index of a table.
    pub(crate) fn new(table: Arc<File>, first: usize, initial: Vec<u64>) -> Self {
        Self { table, first, initial }
    }

    /// The value of an option, by its index in the schema.
    pub(crate) fn get(&self, index: usize) -> u64 {
        settings::value(&self.table, self.first + index).unwrap_or(self.initial[index])
    }
}
