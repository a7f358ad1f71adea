//! Our programs and others.

pub mod c_program;
pub mod ceph;
pub mod command;
pub mod ctl;
pub mod gdb;
pub mod nbdkit;
pub mod page;
pub mod process;
pub mod screen;
pub mod session;
