//! Loads nbdkit's plugins, unchanged, and serves them as backends.
//!
//! A plugin is a shared object with the interface of nbdkit-plugin(3), version 1 or 2. A [`Plugin`] is
//! loaded and has its parameters; [`PluginBackend::open`] opens one handle ("connection") of it for
//! everything that it serves.
//!
//! | module | idea |
//! |---|---|
//! | `abi` | `struct nbdkit_plugin` and the constants of the header |
//! | `locate` | from a name to a shared object for this processor |
//! | `library` | dlopen(3) |
//! | `callbacks` | the functions that plugins call back |
//! | `context` | which callback a thread is in, and what the plugin said there |
//! | `intruder` | plugins that end or fork the process that they are loaded into |
//! | `plugin` | the life of a plugin from `load` to `unload` |
//! | `handle` | a handle, and each callback that takes one |
//! | `offer` | what the plugin can do with it: `can_write` and the others |
//! | `backend` | requests, and what is emulated as nbdkit does it |
//! | `pace` | whether calls are quick enough for the thread that receives |

#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod abi;
mod backend;
mod callbacks;
mod context;
mod error;
mod extent_list;
mod handle;
mod intruder;
mod library;
mod locate;
mod offer;
mod pace;
mod plugin;

pub use backend::PluginBackend;
pub use callbacks::{CallbackError, on_shutdown};
pub use error::PluginError;
pub use library::LoadError;
pub use plugin::{Plugin, ThreadModel};
