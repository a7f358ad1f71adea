//! Layers around another export: `NAME[:OPTION[,OPTION]...]@SPEC`.
//!
//! The first `@` ends the options; so a log whose name contains one needs another name.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{Spec, SpecError, similar};
use crate::layers::SCHEMAS;
use crate::layers::layer_option::Schema;
use crate::size::{self, Size};

/// Layers that are not described by a [`Schema`].
const PLAIN: [&str; 4] = ["partition", "offset", "readonly", "record"];

/// A layer, and what is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerSpec {
    pub(crate) layer: Layer,
    pub(crate) inner: Spec,
}

/// What a layer does to the export below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// Only this partition of it.
    Partition(u32),
    /// Only this part of it; without a length, up to its end.
    Offset {
        start: u64,
        length: Option<u64>,
    },
    ReadOnly,
    /// Everything that changes it is written down in this file.
    Record(PathBuf),
    /// What can be changed while it is in use, and the values to begin with.
    Configurable(&'static Schema, Vec<u64>),
}

/// The names of all layers.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PLAIN.into_iter().chain(SCHEMAS.iter().map(|schema| schema.name))
}

/// Splits off the name of a layer that a text begins with, if it does.
pub(super) fn split(text: &[u8]) -> Option<(&'static str, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric())?;
    if !matches!(text[end], b':' | b'@') {
        return None;
    }
    let name = names().find(|name| name.as_bytes() == &text[..end])?;
    Some((name, &text[end..]))
}

/// Reads what follows the name of a layer.
pub(super) fn parse(name: &'static str, rest: &[u8]) -> Result<LayerSpec, SpecError> {
    let at = rest.iter().position(|byte| *byte == b'@').ok_or(SpecError::NothingBelow(name))?;
    let options = rest[..at].strip_prefix(b":").unwrap_or(&rest[..at]);
    let layer = parse_layer(name, options)?;
    let below = OsStr::from_bytes(&rest[at + 1..]);
    if below.is_empty() {
        return Err(SpecError::NothingBelow(name));
    }
    Ok(LayerSpec { layer, inner: Spec::parse(below)? })
}

fn parse_layer(name: &'static str, options: &[u8]) -> Result<Layer, SpecError> {
    let text = String::from_utf8_lossy(options);
    match name {
        "record" if options.is_empty() => Err(SpecError::NoLog),
        "record" => Ok(Layer::Record(OsStr::from_bytes(options).into())),
        "readonly" if options.is_empty() => Ok(Layer::ReadOnly),
        "readonly" => Err(SpecError::NeedlessOption { layer: name, option: text.into() }),
        "partition" => match text.parse() {
            Ok(number @ 1..) => Ok(Layer::Partition(number)),
            _ => Err(SpecError::BadPartition(text.into())),
        },
        "offset" => parse_offset(&text),
        _ => {
            let schema = SCHEMAS.iter().find(|schema| schema.name == name);
            let schema = schema.ok_or(SpecError::NothingBelow(name))?;
            Ok(Layer::Configurable(schema, parse_options(schema, &text)?))
        }
    }
}

fn parse_offset(text: &str) -> Result<Layer, SpecError> {
    let (start, length) = match text.split_once('+') {
        Some((start, length)) => (start, Some(length)),
        None => (text, None),
    };
    let size =
        |option, text| size::parse(text).map_err(|source| SpecError::BadSize { option, source });
    let start = match start {
        "0" => 0,
        start => size("offset:START[+LENGTH]", start)?,
    };
    let length = length.map(|length| size("offset:START+LENGTH", length)).transpose()?;
    Ok(Layer::Offset { start, length })
}

fn parse_options(schema: &'static Schema, text: &str) -> Result<Vec<u64>, SpecError> {
    let mut given: Vec<Option<u64>> = vec![None; schema.options.len()];
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (targets, value) = match part.split_once('=') {
            Some((word, value)) => {
                let found = schema.options.iter().position(|option| option.name == word);
                let index = found.ok_or_else(|| unknown(schema, word))?;
                (vec![index], value)
            }
            // A value without a name is what the layer is mostly used for.
            None if schema.bare.is_empty() => return Err(unknown(schema, part)),
            None => (schema.bare.to_vec(), part),
        };
        for index in targets {
            let option = &schema.options[index];
            let value = option.kind.parse(value).ok_or_else(|| {
                let (value, expected) = (value.into(), option.kind.expected());
                SpecError::BadLayerOption {
                    layer: schema.name,
                    option: option.name,
                    value,
                    expected,
                }
            })?;
            if given[index].replace(value).is_some() {
                return Err(SpecError::Repeated(option.name));
            }
        }
    }
    let values = given.into_iter().zip(schema.options);
    Ok(values.map(|(value, option)| value.unwrap_or(option.default)).collect())
}

fn unknown(schema: &'static Schema, word: &str) -> SpecError {
    let known: Vec<_> = schema.options.iter().map(|option| option.name).collect();
    let similar = similar(word, &known);
    SpecError::UnknownLayerOption { layer: schema.name, option: word.into(), similar, known }
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.layer {
            Layer::Partition(number) => write!(f, "partition:{number}")?,
            Layer::Offset { start, length } => {
                write!(f, "offset:{}", Size(*start))?;
                if let Some(length) = length {
                    write!(f, "+{}", Size(*length))?;
                }
            }
            Layer::ReadOnly => f.write_str("readonly")?,
            Layer::Record(log) => write!(f, "record:{}", log.display())?,
            Layer::Configurable(schema, values) => {
                f.write_str(schema.name)?;
                let changed = schema.options.iter().zip(values);
                let changed = changed.filter(|(option, value)| option.default != **value);
                for (separator, (option, value)) in
                    std::iter::once(':').chain(std::iter::repeat(',')).zip(changed)
                {
                    write!(f, "{separator}{}={}", option.name, option.kind.format(*value))?;
                }
            }
        }
        write!(f, "@{}", self.inner)
    }
}
