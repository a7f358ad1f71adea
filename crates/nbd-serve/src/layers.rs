//! Layers: one that shows a part of what is below it, and others that do something around each
//! command.

pub(crate) mod cow;
mod delay;
mod error;
pub(crate) mod layer_option;
pub(crate) mod layered;
mod log;
pub(crate) mod partition;
mod rate;
pub(crate) mod record;
#[cfg(test)]
mod tests;
pub(crate) mod write_log;

use layer_option::{OptionValues, Schema};
use layered::CommandHook;

/// The layers whose options can be changed at run time.
pub(crate) static SCHEMAS: [Schema; 4] = [delay::SCHEMA, error::SCHEMA, rate::SCHEMA, log::SCHEMA];

/// What the layer of a schema does.
pub(crate) fn configurable(schema: &Schema, options: OptionValues) -> Box<dyn CommandHook> {
    match schema.name {
        "delay" => Box::new(delay::Delay::new(options)),
        "error" => Box::new(error::Errors::new(options)),
        "rate" => Box::new(rate::Rate::new(options)),
        _ => Box::new(log::Log::new(options)),
    }
}
