//! Who uses a block device, and the command that ends each use.
//!
//! Only `/proc` and `/sys` are read. No device is opened, and no file is asked for anything that
//! its server would have to answer, so that a device that is stuck delays nothing here; what may
//! still take long is a `/proc` with thousands of processes. A daemon calls [`scan`] in a process
//! of its own.
//!
//! | module | idea |
//! |---|---|
//! | `sysfs` | block devices by name and number, and the short files that describe them |
//! | `layers` | what is stacked on a device: partitions, device-mapper, md, loop, and downwards again |
//! | `kernel` | parts of the kernel that open devices by path, without a trace among the processes |
//! | `mountinfo` | what is mounted, by mount namespace |
//! | `mounts` | file systems and swap on a device |
//! | `processes` | open descriptors and mapped memory |
//!
//! Not found, because no file shows it: a descriptor that is on its way in a unix socket, one that
//! only an io_uring instance has registered, a process outside the pid namespace of the caller, and
//! a kernel user whose configfs or sysfs is not mounted here. A use that claims the device (each
//! mount, swap, device-mapper, md) is refused by the kernel itself.

mod kernel;
mod layers;
mod mountinfo;
mod mounts;
mod processes;
mod sysfs;
mod user;

use std::collections::HashSet;

pub use layers::{Layer, layers_above, whole_devices_below};
pub use mountinfo::Mount;
pub use sysfs::Node;
use user::MAX_USERS;
pub use user::{Finding, User};

/// Looks for the users of a device and its partitions, and of all that is stacked on them; those
/// that have to be ended first come first. Processes are looked at only if nothing else is found,
/// as a mount says more than the open file behind it. `ours` are processes that do not count.
pub fn scan(device: &str, ours: &[i32], mut report: impl FnMut(Finding)) {
    let users = lasting_users(device);
    if users.is_empty() {
        let layers = layers_above(device).into_iter().map(|layer| layer.node);
        let nodes: Vec<Node> = Node::find(device).into_iter().chain(layers).collect();
        processes::scan(&nodes, ours, &mut report);
    }
    users.into_iter().take(MAX_USERS).map(Finding::User).for_each(&mut report);
    report(Finding::Complete);
}

/// The users that do not pass by themselves: mounts, swap, and all that the kernel does.
#[must_use]
pub fn lasting_users(device: &str) -> Vec<User> {
    let layers = layers_above(device);
    let mut found = Vec::new();
    let mut used_layers = HashSet::new();
    // The top of the stack first: nothing below it can be closed before it is.
    for layer in layers.iter().rev() {
        let own = uses(&layer.node);
        let is_used = !own.is_empty() || used_layers.contains(&layer.node.name);
        if is_used || !layer.is_partition() {
            used_layers.insert(layer.below.clone());
        }
        found.extend(own.into_iter().map(|user| by_way_of(user, layer)));
        found.extend(layer.user(is_used));
    }
    found.extend(Node::find(device).iter().flat_map(uses));
    let mut told = HashSet::new();
    found.retain(|user| told.insert(user.what.clone()));
    found
}

/// All users of one block device but processes, and but what is stacked on it.
fn uses(node: &Node) -> Vec<User> {
    let mut found = mounts::users(node);
    found.extend(kernel::users(node));
    found
}

fn by_way_of(user: User, layer: &Layer) -> User {
    if layer.is_partition() {
        return user;
    }
    User { what: format!("{} by way of {}", user.what, layer.node.name), ..user }
}
