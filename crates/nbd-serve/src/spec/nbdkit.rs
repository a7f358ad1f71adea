//! `nbdkit:PLUGIN[,PARAMETER]...`: a plugin of nbdkit, and its own parameters.
//!
//! A comma that belongs to a parameter is written twice, as with qemu's options.

use std::fmt;
use std::path::PathBuf;

use nbd_control::comma_list::{escape, split};

use super::SpecError;

/// A plugin, and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NbdkitSpec {
    /// The name of an installed one, or a path: that contains a slash or a dot.
    pub(crate) plugin: String,
    /// `KEY=VALUE`, or a value for the key that the plugin takes as the usual one.
    pub(crate) parameters: Vec<String>,
    /// What network clients ask for to get it; empty for a device.
    pub(crate) export_name: String,
}

impl NbdkitSpec {
    /// Changes the plugin's path, if it is named by one.
    pub(super) fn map_path(mut self, change: &mut dyn FnMut(PathBuf) -> PathBuf) -> Self {
        if self.plugin.contains(['/', '.']) {
            let path = change(PathBuf::from(&self.plugin));
            // What is not UTF-8 stays relative.
            self.plugin = path.into_os_string().into_string().unwrap_or(self.plugin);
        }
        self
    }
}

pub(super) fn parse(text: &[u8]) -> Result<NbdkitSpec, SpecError> {
    let text = str::from_utf8(text).map_err(|_| SpecError::PluginNotUtf8)?;
    let mut parts = split(text).into_iter();
    let plugin = parts.next().filter(|plugin| !plugin.is_empty()).ok_or(SpecError::NoPlugin)?;
    if plugin.starts_with('-') || plugin.contains(' ') && !plugin.contains('/') {
        return Err(SpecError::PluginOptions(plugin));
    }
    // A comma at the end separates nothing.
    let parameters = parts.filter(|part| !part.is_empty()).collect();
    Ok(NbdkitSpec { plugin, parameters, export_name: String::new() })
}

impl fmt::Display for NbdkitSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nbdkit:{}", escape(&self.plugin))?;
        self.parameters.iter().try_for_each(|parameter| write!(f, ",{}", escape(parameter)))
    }
}
