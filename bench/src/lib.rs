//! What `scripts/bench` measures with.
//!
//! `bench-load` asks and `bench-limit` answers; both do as little else as they can. The load can
//! be put on any NBD server, and on a backend's lane: then it plays the kernel, and the holder.

pub mod end;
pub mod handshake;
pub mod lane;
pub mod load;
pub mod mapped;
pub mod plan;
