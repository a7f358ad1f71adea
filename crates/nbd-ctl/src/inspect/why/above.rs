//! A device and what is stacked on it, by every name that a process may use.

use std::fs;
use std::path::Path;

use nbd_device_users::{Layer, Node, layers_above};
use serde::Serialize;

use crate::device::Device;

/// A device with its partitions, and mappings, loop devices and the like on them.
#[derive(Debug)]
pub(crate) struct Stack {
    device: Device,
    layers: Vec<Layer>,
    numbers: Vec<String>,
}

/// Something on a device that has to be closed before the device can be detached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Above {
    /// The kernel's name, like `dm-0`.
    pub(crate) name: String,
    /// What it is made of, like `nbd0p1`.
    pub(crate) below: String,
    /// The name and what made it, for people.
    pub(crate) description: String,
    /// The command that closes it.
    pub(crate) closed_by: Option<String>,
}

impl Stack {
    pub(crate) fn of(device: Device) -> Self {
        let name = device.to_string();
        let layers = layers_above(&name);
        let whole = Node::find(&name).into_iter();
        let nodes = whole.chain(layers.iter().map(|layer| layer.node.clone()));
        let numbers = nodes.map(|node| node.number).collect();
        Self { device, layers, numbers }
    }

    /// What has to be closed, that on top first.
    pub(crate) fn above(&self) -> Vec<Above> {
        let layers = self.layers.iter().rev().filter(|layer| !layer.is_partition());
        let above = layers.map(|layer| Above {
            name: layer.node.name.clone(),
            below: layer.below.clone(),
            description: layer.description(),
            closed_by: layer.closing_command(),
        });
        above.collect()
    }

    /// Whether this is the kernel's name of one of them, like `nbd0p1` or `dm-0`.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        is_own(name, self.device) || self.layers.iter().any(|layer| layer.node.name == name)
    }

    /// Whether this is `major:minor` of one of them.
    pub(crate) fn has_number(&self, number: &str) -> bool {
        self.numbers.iter().any(|it| it == number)
    }

    /// Whether a path leads to one of them, links like those of LVM included. Only what lies in
    /// /dev is looked at, where nothing can be stuck.
    pub(crate) fn has_node(&self, path: &str) -> bool {
        let Some(name) = path.strip_prefix("/dev/") else {
            return false;
        };
        let is_mapping =
            |mapping: &str| self.layers.iter().any(|layer| layer.mapper_name() == Some(mapping));
        self.has_name(name)
            || name.strip_prefix("mapper/").is_some_and(is_mapping)
            || (!self.layers.is_empty() && self.has_name(&target(path).unwrap_or_default()))
    }

    /// Whether a thread of the kernel works for one of them: `jbd2/dm-0-8`,
    /// `kworker/u4:1+flush-43:0`, `dmcrypt_write/254:0`.
    pub(crate) fn has_worker(&self, thread: &str) -> bool {
        // A name may have hyphens of its own.
        let is_name = |rest: &str| {
            let ends = rest.match_indices('-').map(|(at, _)| at).chain([rest.len()]);
            ends.into_iter().any(|end| self.has_name(&rest[..end]))
        };
        thread.split_once('/').is_some_and(|(_, rest)| is_name(rest) || self.has_number(rest))
            || thread.rsplit_once("flush-").is_some_and(|(_, rest)| self.has_number(rest))
    }
}

fn target(path: &str) -> Option<String> {
    let path = fs::canonicalize(path).ok().filter(|path| path.starts_with("/dev"))?;
    Some(Path::new(path.file_name()?).to_str()?.to_owned())
}

/// `nbd0` or `nbd0p1`, and not `nbd01`.
fn is_own(name: &str, device: Device) -> bool {
    let rest = name.strip_prefix(&device.to_string());
    rest.is_some_and(|rest| {
        let number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        rest.is_empty() || rest.strip_prefix('p').is_some_and(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_not_taken_for_another_one() {
        for (name, own) in
            [("nbd1", true), ("nbd1p2", true), ("nbd10", false), ("nbd1p", false), ("nbd", false)]
        {
            assert_eq!(is_own(name, Device(1)), own, "{name}");
        }
    }

    #[test]
    fn threads_of_the_kernel_are_known_by_name_and_by_number() {
        let numbers = vec!["43:16".to_owned()];
        let stack = Stack { device: Device(1), layers: Vec::new(), numbers };
        for (thread, own) in [
            ("jbd2/nbd1-8", true),
            ("jbd2/nbd1p1-8", true),
            ("kworker/u4:1+flush-43:16", true),
            ("dmcrypt_write/43:16", true),
            ("jbd2/nbd10-8", false),
            ("kworker/u4:1+flush-43:160", false),
            ("nbd1", false),
        ] {
            assert_eq!(stack.has_worker(thread), own, "{thread}");
        }
        assert!(stack.has_node("/dev/nbd1p3") && !stack.has_node("/mnt/nbd1"));
    }
}
