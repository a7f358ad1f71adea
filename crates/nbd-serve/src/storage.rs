//! Where the data is: files, block devices, memory, and disks that are not stored anywhere.
//!
//! | module | idea |
//! |---|---|
//! | `probe` | what a path names now, and the shape of a device made of it |
//! | `file_reuse` | which descriptor to serve: the one that a predecessor left, or a locked new one |
//! | `lock`, `lock_owner` | one writer only; and if there is one already, which process it is |
//! | `file` | reading and writing: files, block devices, and memory, which is a file too |
//! | `write_latency` | whether writes may be executed where they are received |
//! | `tmpfs_map`, `pagecache_map` | reaching a file without system calls; both are a `mapping` |
//! | `extents` | which parts of a file are allocated |
//! | `aligned` | buffers for direct I/O |
//! | `mem` | memory that outlives the process |
//! | `synthetic` | `null:` and `pattern:`, which are not stored anywhere |
//! | `system` | the system calls that nix and std do not have |

pub(crate) mod aligned;
pub(crate) mod extents;
pub(crate) mod file;
pub(crate) mod file_reuse;
pub(crate) mod lock;
mod lock_owner;
mod mapping;
pub(crate) mod mem;
mod pagecache_map;
pub(crate) mod probe;
pub(crate) mod synthetic;
mod system;
mod tmpfs_map;
mod write_latency;
