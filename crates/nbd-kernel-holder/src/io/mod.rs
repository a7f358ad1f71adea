//! The event loop: descriptors to events, commands to system calls; and what is written outside of
//! the kernel's devices. Nothing in here decides, and nothing waits but the loop itself.

mod abilities;
mod backends;
pub(crate) mod become_program;
mod commands;
pub(crate) mod control_clients;
mod event_loop;
pub(crate) mod helpers;
mod joining;
pub(crate) mod listen;
pub(crate) mod owner_exit;
pub(crate) mod recording;
mod state_file;
pub(crate) mod survey;
pub(crate) mod udev;
pub(crate) mod words;
