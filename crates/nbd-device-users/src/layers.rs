//! What is stacked on a block device, and what a block device is stacked on.

use std::collections::VecDeque;
use std::path::Path;

use crate::sysfs::{Node, attribute, entries};
use crate::user::User;

/// So many devices of a stack are looked at, those counted again that are reached by two ways.
const MAX_LOOKS: usize = 1024;

/// A block device that is made of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Itself.
    pub node: Node,
    /// The name of what it is made of.
    pub below: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Partition,
    Mapping {
        name: String,
        uuid: String,
    },
    Loop {
        /// It goes by itself with its last user.
        clears_itself: bool,
    },
    /// md, bcache, drbd and others that the kernel lists as holders.
    Other,
}

impl Layer {
    fn new(name: &str, below: &str, kind: Option<Kind>) -> Option<Self> {
        let node = Node::find(name)?;
        let folder = node.folder();
        let kind = kind.unwrap_or_else(|| match attribute(&folder.join("dm/name")) {
            Some(name) => {
                let uuid = attribute(&folder.join("dm/uuid")).unwrap_or_default();
                Kind::Mapping { name, uuid }
            }
            None => Kind::Other,
        });
        Some(Self { node, below: below.to_owned(), kind })
    }

    /// Whether it is only a part of the device below, and no use of it.
    #[must_use]
    pub fn is_partition(&self) -> bool {
        self.kind == Kind::Partition
    }

    /// The name of a mapping in /dev/mapper.
    #[must_use]
    pub fn mapper_name(&self) -> Option<&str> {
        match &self.kind {
            Kind::Mapping { name, .. } => Some(name),
            _ => None,
        }
    }

    /// What it is: `dm-0 (secret, LUKS)`, `the loop device loop0`, `md0`.
    #[must_use]
    pub fn description(&self) -> String {
        let own = &self.node.name;
        match &self.kind {
            Kind::Mapping { name, uuid } => match mapping_type(uuid) {
                "" => format!("{own} ({name})"),
                what => format!("{own} ({name}, {what})"),
            },
            Kind::Loop { .. } => format!("the loop device {own}"),
            Kind::Partition => format!("the partition {own}"),
            Kind::Other => own.clone(),
        }
    }

    /// The command that takes it away, if there is one.
    #[must_use]
    pub fn closing_command(&self) -> Option<String> {
        let own = &self.node.name;
        match &self.kind {
            Kind::Partition => None,
            Kind::Loop { .. } => Some(format!("losetup -d /dev/{own}")),
            Kind::Mapping { name, uuid } => Some(close_mapping(name, uuid)),
            Kind::Other => close_other(own),
        }
    }

    /// It as a user of what is below.
    pub(crate) fn user(&self, is_used: bool) -> Option<User> {
        let what = match &self.kind {
            Kind::Partition => return None,
            Kind::Loop { .. } => format!("the backing device of {}", self.description()),
            _ => format!("part of {}", self.description()),
        };
        let goes_with_its_user = self.kind == (Kind::Loop { clears_itself: true }) && is_used;
        let command = self.closing_command().filter(|_| !goes_with_its_user);
        Some(User::lasting(what, command))
    }
}

/// All that is stacked on a device, the lower ones first.
#[must_use]
pub fn layers_above(device: &str) -> Vec<Layer> {
    let mut found: Vec<Layer> = Vec::new();
    let mut left = VecDeque::from([device.to_owned()]);
    for _ in 0..MAX_LOOKS {
        let Some(name) = left.pop_front() else { break };
        for layer in directly_above(&name) {
            // What stands on two of them comes after both.
            found.retain(|known| known.node != layer.node);
            left.push_back(layer.node.name.clone());
            found.push(layer);
        }
    }
    found
}

fn directly_above(name: &str) -> Vec<Layer> {
    let Some(node) = Node::find(name) else {
        return Vec::new();
    };
    let folder = node.folder();
    let parts =
        entries(&folder).into_iter().filter(|it| folder.join(it).join("partition").exists());
    let parts = parts.filter_map(|it| Layer::new(&it, name, Some(Kind::Partition)));
    let holders = entries(&folder.join("holders")).into_iter();
    let holders = holders.filter_map(|it| Layer::new(&it, name, None));
    parts.chain(holders).chain(loops_on(&node)).collect()
}

/// Loop devices open their backing file as any program would, so the kernel lists no holder.
fn loops_on(node: &Node) -> Vec<Layer> {
    let names = entries(Path::new("/sys/block")).into_iter().filter(|it| it.starts_with("loop"));
    names
        .filter_map(|name| {
            let folder = Path::new("/sys/block").join(&name).join("loop");
            let backing = attribute(&folder.join("backing_file"))?;
            if !node.is_named_by(&backing) {
                return None;
            }
            let clears_itself = attribute(&folder.join("autoclear")).as_deref() == Some("1");
            Layer::new(&name, &node.name, Some(Kind::Loop { clears_itself }))
        })
        .collect()
}

/// The whole disks at the bottom of a block device: `nbd0` for `nbd0p1`, and for a mapping on it.
#[must_use]
pub fn whole_devices_below(path: &Path) -> Vec<String> {
    let number = crate::sysfs::block_number(path);
    let start = number.and_then(|number| name_of(&format!("/sys/dev/block/{number}")));
    let mut left: Vec<String> = start.into_iter().collect();
    let mut seen: Vec<String> = Vec::new();
    let mut found = Vec::new();
    while let Some(name) = left.pop() {
        if seen.contains(&name) || seen.len() >= MAX_LOOKS {
            continue;
        }
        let below = directly_below(&name);
        if below.is_empty() {
            found.push(name.clone());
        }
        left.extend(below);
        seen.push(name);
    }
    found
}

fn directly_below(name: &str) -> Vec<String> {
    let Some(node) = Node::find(name) else {
        return Vec::new();
    };
    let folder = node.folder();
    if folder.join("partition").exists() {
        return name_of(&folder.join("..").to_string_lossy()).into_iter().collect();
    }
    let mut below = entries(&folder.join("slaves"));
    let backing = attribute(&folder.join("loop/backing_file"));
    let number = backing.and_then(|path| crate::sysfs::block_number(Path::new(&path)));
    below.extend(number.and_then(|number| name_of(&format!("/sys/dev/block/{number}"))));
    below
}

fn name_of(folder: &str) -> Option<String> {
    let folder = std::fs::canonicalize(folder).ok()?;
    Some(folder.file_name()?.to_str()?.to_owned())
}

/// What made a mapping, by the prefix that its tool gives to the uuid.
fn mapping_type(uuid: &str) -> &'static str {
    let known = [
        ("CRYPT-LUKS", "LUKS"),
        ("CRYPT-VERITY", "dm-verity"),
        ("CRYPT-INTEGRITY", "dm-integrity"),
        ("CRYPT-", "dm-crypt"),
        ("LVM-", "LVM"),
        ("mpath-", "multipath"),
        ("DMRAID-", "dmraid"),
        ("stratis-", "Stratis"),
    ];
    known.iter().find(|(prefix, _)| uuid.starts_with(prefix)).map_or("", |(_, what)| what)
}

fn close_mapping(name: &str, uuid: &str) -> String {
    match mapping_type(uuid) {
        "LUKS" | "dm-crypt" => format!("cryptsetup close {name}"),
        "dm-verity" => format!("veritysetup close {name}"),
        "dm-integrity" => format!("integritysetup close {name}"),
        "LVM" => close_volume(name, uuid),
        "multipath" => format!("multipath -f {name}"),
        "dmraid" => format!("dmraid -an {name}"),
        _ => format!("dmsetup remove {name}"),
    }
}

/// `LVM-`, the group's and the volume's identifiers of 32 characters each, and for a volume that
/// belongs to another one a suffix.
const LVM_UUID_LENGTH: usize = 4 + 32 + 32;

fn close_volume(name: &str, uuid: &str) -> String {
    let (group, volume) = volume_name(name);
    match volume {
        Some(volume) if uuid.len() == LVM_UUID_LENGTH => format!("lvchange -an {group}/{volume}"),
        _ => format!("vgchange -an {group}"),
    }
}

/// LVM joins group and volume with a hyphen, and doubles those that are part of a name.
fn volume_name(name: &str) -> (String, Option<String>) {
    const HYPHEN: &str = "\0";
    let marked = name.replace("--", HYPHEN);
    let plain = |part: &str| part.replace(HYPHEN, "-");
    match marked.split_once('-') {
        Some((group, volume)) => (plain(group), Some(plain(volume))),
        None => (plain(&marked), None),
    }
}

fn close_other(name: &str) -> Option<String> {
    if name.starts_with("md") {
        Some(format!("mdadm --stop /dev/{name}"))
    } else if name.starts_with("bcache") {
        Some(format!("echo 1 >/sys/block/{name}/bcache/stop"))
    } else {
        let minor = name.strip_prefix("drbd")?;
        Some(format!("drbdsetup detach {minor}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mapping_is_closed_by_the_tool_that_made_it() {
        let volume = format!("LVM-{}", "x".repeat(64));
        for (name, uuid, command) in [
            ("secret", "CRYPT-LUKS2-0123-secret", "cryptsetup close secret"),
            ("plain", "CRYPT-PLAIN-plain", "cryptsetup close plain"),
            ("root", "CRYPT-VERITY-0123-root", "veritysetup close root"),
            ("vg-lv", &*volume, "lvchange -an vg/lv"),
            ("my--vg-my--lv", &*volume, "lvchange -an my-vg/my-lv"),
            ("vg-lv_tdata", &*format!("{volume}-tdata"), "vgchange -an vg"),
            ("mpatha", "mpath-3600", "multipath -f mpatha"),
            ("mine", "", "dmsetup remove mine"),
        ] {
            assert_eq!(close_mapping(name, uuid), command);
        }
    }

    #[test]
    fn other_devices_have_commands_of_their_own() {
        assert_eq!(close_other("md127").as_deref(), Some("mdadm --stop /dev/md127"));
        assert_eq!(close_other("drbd1").as_deref(), Some("drbdsetup detach 1"));
        assert_eq!(close_other("unknown0"), None);
    }

    #[test]
    fn a_loop_device_that_goes_with_its_mount_needs_no_command() {
        let layer = |clears_itself| Layer {
            node: Node { name: "loop3".into(), number: "7:3".into() },
            below: "nbd0".into(),
            kind: Kind::Loop { clears_itself },
        };
        let command = |clears_itself, is_used| layer(clears_itself).user(is_used)?.ends_with;
        assert_eq!(command(true, true), None);
        assert_eq!(command(true, false).as_deref(), Some("losetup -d /dev/loop3"));
        assert_eq!(command(false, true).as_deref(), Some("losetup -d /dev/loop3"));
    }

    #[test]
    fn what_does_not_exist_has_nothing_above_or_below() {
        assert_eq!(layers_above("no-such-device"), []);
        assert_eq!(whole_devices_below(Path::new("/dev/null")), [""; 0]);
    }
}
