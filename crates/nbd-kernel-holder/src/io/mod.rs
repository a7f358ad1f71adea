//! The event loop: descriptors to events, commands to system calls; and what is written outside of
//! the kernel's devices. Nothing in here decides, and nothing waits but the loop itself.

mod abilities;
pub(crate) mod backend_process;
mod backends;
pub(crate) mod become_program;
mod commands;
pub(crate) mod connections;
pub(crate) mod control_clients;
mod event_loop;
pub(crate) mod helpers;
mod joining;
pub(crate) mod lanes;
pub(crate) mod listen;
pub(crate) mod log_file;
pub(crate) mod log_pipe;
pub(crate) mod log_sink;
pub(crate) mod log_text;
mod notes;
pub(crate) mod owner_exit;
pub(crate) mod program;
pub(crate) mod recording;
pub(crate) mod sandbox;
pub(crate) mod signals;
mod state_file;
pub(crate) mod survey;
pub(crate) mod udev;
pub(crate) mod words;
