//! Why a plugin cannot be served.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::callbacks::CallbackError;
use crate::library::LoadError;

/// Why a plugin cannot be served.
#[derive(Debug, Error)]
pub enum PluginError {
    /// No shared object has that name.
    #[error(
        "there is no such plugin: nbdkit-{name}-plugin.so is in none of {searched}; install it, or write \
         its path, like nbdkit:./{name}.so"
    )]
    NotFound {
        /// The name.
        name: String,
        /// The directories.
        searched: String,
    },
    /// It cannot be read.
    #[error("{}", .path.display())]
    Read {
        /// The shared object.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is something else.
    #[error("{}: is not a shared object (compile with cc -shared -fPIC)", .0.display())]
    NotShared(PathBuf),
    /// It is for other processors.
    #[error(
        "{}: is for {theirs}, and this program is for {}: compile it for this machine",
        .path.display(),
        std::env::consts::ARCH
    )]
    Architecture {
        /// The shared object.
        path: PathBuf,
        /// The other architecture.
        theirs: String,
    },
    /// The functions that it calls cannot be provided.
    #[error(transparent)]
    Callbacks(#[from] CallbackError),
    /// The loader refuses it. It names undefined symbols.
    #[error("cannot be loaded")]
    Load(#[from] LoadError),
    /// It is a filter.
    #[error(
        "{}: is a filter of nbdkit, and not a plugin. Layers do the same: delay, error, rate, cow, log, \
         readonly, partition and offset; or use exec:nbdkit --filter=...",
        .0.display()
    )]
    Filter(PathBuf),
    /// Its interpreter serves one thread.
    #[error(
        "Ruby serves only the thread that loaded it, and crashes in any other, as with nbdkit itself: write \
         exec:nbdkit -s ruby SCRIPT"
    )]
    Ruby,
    /// It does not have the function that all plugins have.
    #[error(
        "{}: is not a plugin of nbdkit: it exports no function plugin_init (NBDKIT_REGISTER_PLUGIN)",
        .0.display()
    )]
    NoInit(PathBuf),
    /// That function returned nothing.
    #[error("{}: its function plugin_init fails", .0.display())]
    InitFailed(PathBuf),
    /// It is newer.
    #[error("needs version {0} of the plugin interface, and 2 is the newest that is known here")]
    Version(i32),
    /// It lacks what every plugin needs.
    #[error("has no callback `{0}`, which every plugin needs")]
    Incomplete(&'static str),
    /// Its variables exist once in a process.
    #[error(
        "{}: is loaded already, and a plugin serves one export of a process: serve the other one with \
         another nbd-serve",
        .0.display()
    )]
    LoadedTwice(PathBuf),
    /// It has no parameters.
    #[error("takes no parameters, so `{0}` has to go")]
    NeedlessParameter(String),
    /// A value without a key.
    #[error("`{0}` is no parameter: write KEY=VALUE; a comma in a value is written twice")]
    NoKey(String),
    /// A parameter with a zero byte, which C cannot have.
    #[error("a parameter contains a zero byte")]
    ZeroByte,
    /// A callback failed.
    #[error("`{callback}` fails: {}", said(.words))]
    Failed {
        /// The callback.
        callback: &'static str,
        /// What the plugin said.
        words: String,
    },
    /// It returned what the interface does not have.
    #[error("`{callback}` returns {value}, which {why}")]
    Odd {
        /// The callback.
        callback: &'static str,
        /// What it returned.
        value: i64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Its sizes of blocks contradict each other or the interface.
    #[error("`block_size` returns {minimum}, {preferred} and {maximum}: {why}")]
    BlockSize {
        /// Smallest request, in bytes.
        minimum: u32,
        /// Best request.
        preferred: u32,
        /// Largest request.
        maximum: u32,
        /// What is wrong with them.
        why: &'static str,
    },
    /// There is less than one block of it.
    #[error("has {size} bytes, and a device needs at least one block of {block}")]
    Small {
        /// Its size, in bytes.
        size: u64,
        /// The block size of a device made of it.
        block: u32,
    },
}

fn said(words: &str) -> &str {
    if words.is_empty() { "the plugin does not say why" } else { words }
}
