//! What stands on a device.

pub mod disk;
pub mod loop_device;
pub mod mapping;
pub mod mount;
pub mod taken_down;
pub mod tree;
