//! What goes wrong around a device.

pub mod cgroup;
pub mod delay;
pub mod full_run;
pub mod killer;
pub mod stall;
pub mod trouble;
pub mod under;
