//! What the kernel tells of a block device in `/sys/block`.

use std::fs;

/// An attribute of a device that is a number, `None` if the device has none of that name.
#[must_use]
pub fn block_attribute(device: &str, attribute: &str) -> Option<u64> {
    let path = format!("/sys/block/{device}/{attribute}");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
