//! Ceph's block images as backends: librbd, loaded at run time.
//!
//! An [`ImageSpec`] names an image. [`look`] tells its shape, and [`RbdBackend::open`] opens it: fenced
//! against everything that a predecessor of this process may still have under way in the cluster, and
//! locked against other clients. The library is loaded with dlopen(3), so a program with this crate runs
//! where no Ceph is installed.
//!
//! | module | idea |
//! |---|---|
//! | `spec` | an image and how to reach it, as it is written; `nearest`, for names with mistakes |
//! | `connect` | from there to an open image, and why that fails |
//! | `lock` | who may write: decisions without a cluster, and what is noted for a successor |
//! | `fence` | carries them out |
//! | `backend` | requests; `shared` is what its threads share, `task` a request under way |
//! | `extents` | what is allocated |
//! | `sys` | librbd and librados as safe types: all of the `unsafe`, but that `task` promises it memory |

#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod backend;
mod connect;
mod error;
mod extents;
mod fence;
mod lock;
mod nearest;
mod shared;
mod spec;
mod sys;
mod task;

pub use backend::{RbdBackend, Shape, look};
pub use connect::load_library;
pub use error::RbdError;
pub use lock::{Record, RecordStore, Refusal};
pub use shared::OnLoss;
pub use spec::{ImageSpec, ImageSpecError};
pub use sys::api::LibraryError;
pub use sys::errno::Errno;
pub use sys::process::end_if_left_open;
