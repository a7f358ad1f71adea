//! The name of a device.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use nbd_control::registry::Registry;
use nbd_device_users::{layers_above, whole_devices_below};
use thiserror::Error;

/// Where names that were given at attach are looked up; set once, before anything is parsed.
static NAMES: OnceLock<Registry> = OnceLock::new();

/// A device, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Device(pub(crate) u32);

impl Device {
    /// From here on attached devices are also known by the names in this registry.
    pub(crate) fn known_by_names_in(registry: &Registry) {
        let _ = NAMES.set(registry.clone());
    }

    /// `nbd0`, `/dev/nbd0` or `0`, whatever names there are besides.
    pub(crate) fn literal(text: &str) -> Option<Self> {
        let number = number_in(text);
        let device = number.parse().ok().map(Self);
        // `nbd+1` and `nbd01` parse as numbers, and no device has such a name.
        device.filter(|device| device.0.to_string() == number)
    }

    /// Its name, given at attach.
    pub(crate) fn name(self) -> Option<String> {
        NAMES.get()?.name(self.0)
    }

    /// The device that had this name when it was attached last, if its log is still kept.
    pub(crate) fn last_named(name: &str) -> Option<Self> {
        NAMES.get()?.last_named(name).map(Self)
    }

    /// The attached device that was given this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let registry = NAMES.get()?;
        let devices = registry.devices().ok()?;
        let mut devices = devices.into_iter();
        devices.find(|&index| registry.name(index).is_some_and(|it| it == name)).map(Self)
    }
}

impl Device {
    /// The same as parsing, and for those who only look also a partition, a mapping or a loop
    /// device: the device below it.
    pub(crate) fn below(text: &str) -> Result<Self, NotADevice> {
        text.parse().or_else(|error: NotADevice| error.device.ok_or(error))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "nbd{}", self.0)
    }
}

impl FromStr for Device {
    type Err = NotADevice;

    /// Takes `nbd0`, `/dev/nbd0`, `0`, and the name that a device was given.
    fn from_str(text: &str) -> Result<Self, NotADevice> {
        Self::literal(text).or_else(|| Self::named(text)).ok_or_else(|| NotADevice::new(text))
    }
}

/// Why a word names no device.
#[derive(Debug, Error)]
#[error("{argument}: {}", self.cause())]
pub(crate) struct NotADevice {
    argument: String,
    /// The device that it is a part of, or that it is made of.
    device: Option<Device>,
    is_partition: bool,
    /// The command that closes what is made of the device.
    closed_by: Option<String>,
}

impl NotADevice {
    fn new(text: &str) -> Self {
        let argument = text.to_string();
        let partition = partition_of(number_in(text)).map(Device);
        let device = partition.or_else(|| device_below(text));
        // A partition is nothing that has to be closed.
        let closed_by = device.filter(|_| partition.is_none()).and_then(|device| {
            let layers = layers_above(&device.to_string()).into_iter();
            let top = layers.rev().find(|layer| !layer.is_partition());
            top.and_then(|layer| layer.closing_command())
        });
        Self { argument, device, is_partition: partition.is_some(), closed_by }
    }

    fn cause(&self) -> String {
        match (self.device, &self.closed_by) {
            (Some(device), _) if self.is_partition => {
                format!("is a partition: give the whole device, {device}")
            }
            (Some(device), Some(command)) => {
                format!("is made of {device}: run `{command}` first, then detach {device}")
            }
            (Some(device), None) => format!("is made of {device}: give {device}"),
            (None, _) if is_name(&self.argument) => {
                "not an NBD device, and no attached device has this name: give it as nbd0, /dev/nbd0 or 0, or by a name that nbd-ctl list shows"
                    .into()
            }
            (None, _) => "not an NBD device: give it as nbd0, /dev/nbd0 or 0".into(),
        }
    }
}

/// Whether this names a device of the file, and not what to serve: a name has no colon.
pub(crate) fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
}

/// The NBD device that a mapping or a loop device is made of.
fn device_below(text: &str) -> Option<Device> {
    let path = text.starts_with("/dev/").then_some(Path::new(text))?;
    let names = whole_devices_below(path);
    names.iter().find_map(|name| Device::literal(name))
}

/// What comes after `nbd` or `/dev/nbd`, or all of it where there is neither.
fn number_in(text: &str) -> &str {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    match name.strip_prefix("nbd") {
        Some(number) => number,
        None if name == text => name,
        None => "",
    }
}

/// The device's number in `0p1`.
fn partition_of(number: &str) -> Option<u32> {
    let (device, partition) = number.split_once('p')?;
    partition.parse::<u32>().ok()?;
    device.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_ways_to_name_a_device() {
        for (text, number) in
            [("nbd0", 0), ("/dev/nbd0", 0), ("0", 0), ("nbd15", 15), ("4294967295", u32::MAX)]
        {
            assert_eq!(text.parse::<Device>().unwrap(), Device(number), "{text}");
        }
        assert_eq!(Device(7).to_string(), "nbd7");
    }

    #[test]
    fn anything_else_is_not_one() {
        for text in [
            "",
            "nbd",
            "/dev/0",
            "/dev/sda",
            "sda",
            "nbd+1",
            "+1",
            "-1",
            "nbd01",
            "nbd 1",
            "4294967296",
            "/dev//nbd0",
            "nbd0/",
            "../nbd0",
        ] {
            let error = text.parse::<Device>().unwrap_err();
            assert!(!error.is_partition, "{text}");
            assert_eq!(crate::error::Error::from(error).exit_code(), 2);
        }
    }

    #[test]
    fn of_a_partition_the_whole_device_is_suggested() {
        let error = "/dev/nbd3p1".parse::<Device>().unwrap_err();
        assert_eq!(error.to_string(), "/dev/nbd3p1: is a partition: give the whole device, nbd3");
    }
}
