//! Descriptors to events, and what is written outside of the kernel's devices.

pub(crate) mod log_file;
pub(crate) mod log_pipe;
pub(crate) mod log_sink;
pub(crate) mod log_text;
