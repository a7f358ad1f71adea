//! librbd and librados as safe types: the only part of this crate with `unsafe`.

pub(crate) mod api;
pub(crate) mod cluster;
pub(crate) mod errno;
pub(crate) mod image;
mod library;
mod names;
pub(crate) mod operation;
pub(crate) mod process;
