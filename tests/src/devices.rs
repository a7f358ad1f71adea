//! An attached device, and what the machine shows of it.

pub mod busy;
pub mod device;
pub mod fio;
pub mod kernel_log;
pub mod machine_state;
pub mod sysfs;
