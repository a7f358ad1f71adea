//! The name of a device.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use nbd_control::registry::Registry;

use crate::error::Error;

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
        // Whoever writes nbd+1 or nbd01 means something else than we would take it for.
        device.filter(|device| device.0.to_string() == number)
    }

    /// The attached device that was given this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let registry = NAMES.get()?;
        let devices = registry.devices().ok()?;
        let mut devices = devices.into_iter();
        devices.find(|&index| registry.name(index).is_some_and(|it| it == name)).map(Self)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "nbd{}", self.0)
    }
}

impl FromStr for Device {
    type Err = Error;

    /// Takes `nbd0`, `/dev/nbd0`, `0`, and the name that a device was given.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::literal(text).or_else(|| Self::named(text)).ok_or_else(|| Error::NotADevice {
            argument: text.to_string(),
            device: partition_of(number_in(text)).map(Self),
        })
    }
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
            assert!(matches!(&error, Error::NotADevice { device: None, .. }), "{text}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn of_a_partition_the_whole_device_is_suggested() {
        let error = "/dev/nbd3p1".parse::<Device>().unwrap_err();
        assert_eq!(error.to_string(), "/dev/nbd3p1: a partition: give the whole device, nbd3");
    }
}
