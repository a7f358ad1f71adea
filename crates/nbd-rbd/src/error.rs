//! Why an image cannot be served.

use std::io;

use thiserror::Error;

use crate::lock::Refusal;
use crate::sys::api::LibraryError;
use crate::sys::errno::Errno;

/// Why an image cannot be served.
#[derive(Debug, Error)]
pub enum RbdError {
    /// librbd is not there.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// There is no configuration file, or it cannot be read.
    #[error("cannot read {conf}: install the cluster's ceph.conf there, or name it with conf=PATH")]
    Conf {
        /// Its path, or where it was looked for.
        conf: String,
        /// What the library says.
        source: Errno,
    },
    /// A name or an option is refused.
    #[error("{0} is refused")]
    Option(&'static str, #[source] Errno),
    /// No monitor answers.
    #[error(
        "no monitor of the cluster answers within {seconds} s (mon_host = {monitors}): see whether it can \
         be reached from here; `client_mount_timeout` in the configuration is how long to wait"
    )]
    NoMonitor {
        /// How long it was waited, as Ceph's option says.
        seconds: String,
        /// Where.
        monitors: String,
    },
    /// The cluster does not know the user, or the key is another one.
    #[error(
        "the cluster refuses client.{user}: its key is wrong, or there is no such user (keyring = {keyring}); \
         `ceph auth get client.{user}` shows it"
    )]
    Key {
        /// The user.
        user: String,
        /// Where its key was looked for.
        keyring: String,
        /// What the library says.
        source: Errno,
    },
    /// No key, or no address of a monitor.
    #[error(
        "client.{user} has no key that can be read (keyring = {keyring}), or the configuration names no \
         monitor (mon_host = {monitors}): use keyring=PATH, user=NAME or conf=PATH"
    )]
    NoKey {
        /// The user.
        user: String,
        /// Where its key was looked for.
        keyring: String,
        /// The monitors.
        monitors: String,
    },
    /// It cannot be connected to.
    #[error("cannot connect to the cluster")]
    Connect(#[source] Errno),
    /// There is no such pool.
    #[error("there is no pool `{name}`{hint}")]
    NoPool {
        /// Its name.
        name: String,
        /// What there is.
        hint: String,
    },
    /// There is no such namespace.
    #[error("the pool `{pool}` has no namespace `{name}`{hint}")]
    NoNamespace {
        /// The pool.
        pool: String,
        /// Its name.
        name: String,
        /// What there is.
        hint: String,
    },
    /// There is no such image.
    #[error("there is no image `{name}` in {place}{hint}")]
    NoImage {
        /// Its name.
        name: String,
        /// Its pool and namespace.
        place: String,
        /// What there is.
        hint: String,
    },
    /// There is no such snapshot.
    #[error("the image has no snapshot `{name}`{hint}")]
    NoSnapshot {
        /// Its name.
        name: String,
        /// What there is.
        hint: String,
    },
    /// The user may not.
    #[error(
        "client.{user} may not {what}: `ceph auth caps client.{user} mon 'profile rbd' osd 'profile rbd'` \
         lets it"
    )]
    Denied {
        /// The user.
        user: String,
        /// What it tried.
        what: &'static str,
        /// What the library says.
        source: Errno,
    },
    /// The image uses what this librbd lacks.
    #[error(
        "the image has features that this librbd lacks: install a newer librbd1, or see `rbd info {0}` and \
         `rbd feature disable`"
    )]
    Features(String),
    /// Nothing keeps others from writing.
    #[error(
        "the image has no exclusive lock, so nothing would keep another client from writing: `rbd feature \
         enable {0} exclusive-lock`, or serve it with ,ro, or take the risk with ,unlocked"
    )]
    NoLock(String),
    /// The lock is not ours.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Writes that were answered would be lost with the process.
    #[error(
        "{option} = {value} for this image, so writes would wait in the memory or on a disk of this machine \
         when they are answered: `rbd config image remove {image} {option}`, and likewise for its pool"
    )]
    Cache {
        /// The image.
        image: String,
        /// Ceph's option.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// It has no block.
    #[error(
        "the image has {0} bytes, and a device needs at least one block of 512: `rbd resize` it"
    )]
    Small(u64),
    /// Something else went wrong.
    #[error("cannot {0}")]
    Step(&'static str, #[source] Errno),
    /// Where the own address is kept for a successor.
    #[error("cannot note for a successor which client of the cluster this is")]
    Record(#[source] io::Error),
    /// A thread is missing.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}
